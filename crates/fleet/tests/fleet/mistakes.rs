//! Each file in mistakes/ is wrong, and mistakes/NAME.txt is what is said of it. `MAINSTAY_UPDATE=1` writes the latter anew.
//!
//! A first line `# env: NAME` chooses the environment.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mainstay_fleet::codes::CODES;
use mainstay_fleet::{Mistake, check_text, load};

use crate::engines::ENGINES;

/// The mistakes of a text, held against the file: every one has a place in it, a known code and a hint.
pub fn check(text: &str, environment: &str) -> Vec<Mistake> {
    let Err(mistakes) = check_text(text, "fleet.yaml", environment, &ENGINES) else { return Vec::new() };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    assert!(!mistakes.0.is_empty());
    assert!(mistakes.0.is_sorted_by_key(|mistake| (mistake.line, mistake.column)), "{mistakes}");
    for mistake in &mistakes.0 {
        let line = text.lines().nth(mistake.line as usize - 1);
        let length = line.map_or(0, |line| line.chars().count());
        assert!(line.is_some() || (text.lines().count() == 0 && mistake.line == 1), "{mistake:?}");
        assert!((1..=length.max(1)).contains(&(mistake.column as usize)), "{mistake:?}");
        assert!(CODES.iter().any(|code| code.code == mistake.code), "{mistake:?}");
        assert!(!mistake.hint.is_empty() && !mistake.message.is_empty(), "{mistake:?}");
        assert_eq!(mistake.file, "fleet.yaml");
    }
    mistakes.0
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fleet/mistakes");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let mut seen = BTreeSet::from(["unreadable-file", "too-large"]);
    let mut wrong = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let environment =
            text.lines().next().and_then(|line| line.strip_prefix("# env: ")).unwrap_or("local");
        let mistakes = check(&text, environment);
        seen.extend(mistakes.iter().map(|mistake| mistake.code));
        let told = mistakes.iter().map(|mistake| format!("{mistake}\n")).collect::<Vec<_>>().join("\n");
        assert!(!told.contains("hunter2"), "{}: a secret is shown:\n{told}", file.display());
        let golden = file.with_extension("txt");
        if std::env::var_os("MAINSTAY_UPDATE").is_some() {
            std::fs::write(&golden, &told).unwrap();
        }
        let expect = std::fs::read_to_string(&golden).unwrap_or_default();
        if told != expect {
            wrong.push(format!("--- {}\n{told}", golden.display()));
        }
    }
    assert!(wrong.is_empty(), "not as expected; MAINSTAY_UPDATE=1 takes them over:\n{}", wrong.join("\n"));
    let unseen: Vec<_> = CODES.iter().map(|code| code.code).filter(|code| !seen.contains(code)).collect();
    assert!(unseen.is_empty(), "no file in mistakes/ shows {unseen:?}");
}

#[test]
fn files_that_no_person_wrote_are_refused() {
    let code = |text: &str| check(text, "local").first().map(|mistake| mistake.code);
    let bomb: String = (0..40).fold("x-a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, i| {
        format!("{text}x-a{}: &a{} [{}]\n", i + 1, i + 1, vec![format!("*a{i}"); 10].join(", "))
    });
    assert_eq!(code(&bomb), Some("too-large"));
    let merges: String = (0..40).fold("x-a0: &a0 { k: v }\n".to_owned(), |text, i| {
        format!("{text}x-a{}: &a{} {{ a: *a{i}, b: *a{i}, c: *a{i}, <<: *a{i} }}\n", i + 1, i + 1)
    });
    assert_eq!(code(&merges), Some("too-large"));
    assert_eq!(code(&format!("fleet: {}", "[".repeat(100_000))), Some("too-large"));
    assert_eq!(code(&"- ".repeat(100_000)), Some("too-large"));
    assert_eq!(code(&format!("fleet: {}", "x".repeat(1 << 20))), Some("too-large"));
    assert_eq!(code(&format!("x-l: [{}]", "a, ".repeat(60_000))), Some("too-large"));
    assert_eq!(code("x: &a [*a]"), Some("bad-yaml"));
}

#[test]
fn a_file_that_cannot_be_read_is_a_mistake_too() {
    let folder = std::env::temp_dir().join(format!("mainstay-fleet-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let told = |name: &str| load(&folder.join(name), "local", &ENGINES).unwrap_err().0.remove(0);
    let missing = told("none.yaml");
    assert_eq!((missing.code, missing.line), ("unreadable-file", 1));
    assert!(missing.hint.contains("mainstay init"));
    std::fs::write(folder.join("latin1.yaml"), b"fleet: shop\nx-caf\xe9: 1\n").unwrap();
    let latin1 = told("latin1.yaml");
    assert_eq!((latin1.code, latin1.line, latin1.column), ("bad-yaml", 2, 6));
    std::fs::write(folder.join("large.yaml"), "é".repeat(1 << 20)).unwrap();
    assert_eq!(told("large.yaml").code, "too-large");
    std::fs::remove_dir_all(&folder).unwrap();
}
