//! The command line from outside, without servers: exit codes, JSON, mistakes.

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "these tests start no servers")]
mod support;

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{Fleet, SHOP, SMALL};

#[test]
fn a_sound_file_checks_clean() {
    let fleet = Fleet::new(SHOP);
    assert_eq!(fleet.ok(&["check"])["errors"].as_array().map(Vec::len), Some(0));
}

#[test]
fn all_mistakes_come_at_once_with_line_and_column() {
    let text = SHOP
        .replace("engine: redis", "engine: rediss")
        .replace("follow: true", "folow: true")
        .replace("every: 1m", "every: 1x");
    let fleet = Fleet::new(&text);
    let checked = fleet.exits(2, &["check"]);
    let errors = checked.json["errors"].as_array().unwrap();
    let codes: Vec<_> = errors.iter().map(|e| e["code"].as_str().unwrap()).collect();
    for code in ["unknown-key", "unknown-engine", "bad-duration"] {
        assert!(codes.contains(&code), "{codes:?}");
    }
    for error in errors {
        let (line, column) = (error["line"].as_u64().unwrap(), error["column"].as_u64().unwrap());
        let text = text.lines().nth(usize::try_from(line).unwrap() - 1).unwrap();
        assert!(column >= 1 && usize::try_from(column).unwrap() <= text.chars().count() + 1, "{error}");
        assert_eq!(error["file"], "fleet.yaml");
    }
    let people = fleet.command(&["check"]).output().unwrap();
    let said = String::from_utf8_lossy(&people.stderr).into_owned();
    assert!(
        said.contains('^')
            && said.contains("follow")
            && said.trim_end().lines().last().unwrap().starts_with("next: "),
        "{said}"
    );
}

#[test]
fn init_writes_a_file_that_checks_and_overwrites_nothing() {
    let fleet = Fleet::new("");
    std::fs::remove_file(fleet.path().join("fleet.yaml")).unwrap();
    fleet.ok(&["init"]);
    assert_eq!(fleet.ok(&["check"])["errors"].as_array().map(Vec::len), Some(0));
    assert_ne!(fleet.run(&["init"]).code, 0);
}

#[test]
fn failures_are_json_and_end_with_what_to_do() {
    let fleet = Fleet::new(SMALL);
    for (code, args) in [
        (2, &["connect"][..]),
        (1, &["connect", "orders", "--uri"][..]),
        (1, &["backup", "run", "orders"][..]),
        (1, &["recover", "drop", "sandbox-none"][..]),
        (1, &["recover", "run", "shop", "--point", "none"][..]),
    ] {
        let out = fleet.run(args);
        assert_eq!(out.code, code, "{args:?}: {}", out.stderr);
        let error = &out.json["error"];
        assert!(["code", "message", "hint"].iter().all(|k| error[k].is_string()), "{args:?}: {}", out.stdout);
        assert!(
            out.stderr.trim_end().lines().last().unwrap().starts_with("next: "),
            "{args:?}: {}",
            out.stderr
        );
    }
    std::fs::remove_file(fleet.path().join("fleet.yaml")).unwrap();
    assert_eq!(fleet.run(&["status"]).code, 2);
}

#[test]
fn a_stop_while_settings_are_checked_is_no_mistake_of_the_file() {
    let fleet = Fleet::new(
        &SMALL.replace("engine: postgres,", "engine: postgres, config: { jit: off, work_mem: 8MB },"),
    );
    for delay_ms in [20, 40, 60, 80, 100, 130, 160] {
        let mut command = fleet.command(&["backup", "run", "orders"]);
        let child = command.stderr(Stdio::piped()).process_group(0).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        let _ = Command::new("kill").args(["-INT", "--", &format!("-{}", child.id())]).status();
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() != Some(2) && !said.contains("mistake"), "after {delay_ms} ms: {said}");
    }
}

#[test]
fn the_help_of_every_command_has_an_example() {
    let fleet = Fleet::new(SMALL);
    let help =
        |args: &[&str]| String::from_utf8_lossy(&fleet.command(args).output().unwrap().stdout).into_owned();
    let verbs = |text: &str| -> Vec<String> {
        let list = text
            .split("Commands:")
            .nth(1)
            .unwrap_or_default()
            .split("\n\n")
            .next()
            .unwrap_or_default()
            .to_owned();
        list.lines()
            .filter_map(|l| l.split_whitespace().next())
            .filter(|v| *v != "help")
            .map(str::to_owned)
            .collect()
    };
    for noun in verbs(&help(&["--help"])) {
        let text = help(&[&noun, "--help"]);
        let below = verbs(&text);
        if below.is_empty() {
            assert!(text.contains("Example: "), "{noun}: {text}");
        }
        for verb in below {
            assert!(help(&[&noun, &verb, "--help"]).contains("Example: mainstay "), "{noun} {verb}");
        }
    }
}
