//! `mainstay generate`: what docs/generated is made of (`cargo xtask codegen`).

use std::fmt::Write;

use clap::CommandFactory;

use super::Cx;
use crate::args::{Cli, Generated};
use crate::failure::{Failure, Result};
use crate::printer::table;

pub fn run(cx: &Cx, what: Generated) -> Result {
    let text = match what {
        Generated::Schema => serde_json::to_string_pretty(&mainstay_fleet::schema())
            .map_err(|e| Failure::of("internal", &e, None))?,
        Generated::Commands => commands(),
        Generated::Capabilities => capabilities(cx),
    };
    cx.printer.line(&text)
}

/// The reference of all commands, as Markdown.
fn commands() -> String {
    let mut text = String::from("# Commands\n\nMade by `cargo xtask codegen` from the binary's own help.\n");
    let mut root = Cli::command();
    root.build();
    let mut todo = vec![("mainstay".to_owned(), root)];
    while let Some((name, mut command)) = todo.pop() {
        let mut below: Vec<_> = command
            .get_subcommands()
            .filter(|c| !c.is_hide_set() && c.get_name() != "help")
            .cloned()
            .collect();
        below.reverse();
        todo.extend(below.into_iter().map(|c| (format!("{name} {}", c.get_name()), c)));
        let help = command.render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        // Writing into a String does not fail.
        let _ = write!(text, "\n## {name}\n```\n{}\n```\n", help.join("\n").trim_end());
    }
    text
}

/// Which engine can do what: gaps are gaps.
fn capabilities(cx: &Cx) -> String {
    let mut text = String::from(
        "# Capabilities\n\nMade by `cargo xtask codegen` from what each adapter offers.\n\n```\n",
    );
    let yes = |has: bool| if has { "yes" } else { "-" }.to_owned();
    let rows = cx.engines.iter().map(|e| {
        vec![
            e.name().to_owned(),
            yes(e.snapshot().is_some()),
            yes(e.follow().is_some()),
            yes(e.mark().is_some()),
            yes(e.hold().is_some()),
            yes(e.restore().is_some()),
            yes(e.replay().is_some()),
            yes(e.observe().is_some()),
            yes(e.launch().is_some()),
            yes(e.prove().is_some()),
        ]
    });
    let head =
        ["engine", "snapshot", "follow", "mark", "hold", "restore", "replay", "observe", "launch", "prove"];
    text.push_str(&table(&head, rows));
    text.push_str("\n```");
    text
}
