//! `cargo xtask new-engine NAME`: an adapter that passes the conformance suite, to be filled in.
//!
//! It is the Fake engine under the new name: a copy of its sources, a Cargo.toml that names what they use, a README that
//! asks what must be answered. Nothing that exists is overwritten. What it cannot do is the registry line in `app`, which
//! is for a person to write: it is printed.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::tool;

const FAKE: &str = "crates/engine-kit/src/fake";

/// Makes engines/NAME in the repository.
pub fn run(name: &str) -> Result<()> {
    make(tool::root(), name)?;
    println!("made engines/{name}: fill it in, file by file; its README says what is asked");
    println!(
        "then add to the [workspace.dependencies] of Cargo.toml and the [dependencies] of crates/app/Cargo.toml:"
    );
    println!("    mainstay-{name} = {{ path = \"engines/{name}\" }}");
    println!("    mainstay-{name}.workspace = true");
    println!("and to the registry in crates/app:");
    println!("    &mainstay_{name}::{},", name.to_uppercase());
    Ok(())
}

/// Makes engines/NAME below `root`, from the Fake there.
fn make(root: &Path, name: &str) -> Result<()> {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !plain || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        bail!("{name:?} is no name for an engine: small letters and digits, beginning with a letter");
    }
    let fake = root.join(FAKE);
    if !fake.join("mod.rs").is_file() {
        bail!("{FAKE}/mod.rs is not there: it is what a new engine is copied from");
    }
    let folder = root.join("engines").join(name);
    if folder.exists() {
        bail!("engines/{name} exists already");
    }
    let sources = folder.join("src");
    let code = copy(&fake, &sources, name)?;
    let kit = std::fs::read_to_string(root.join("crates/engine-kit/Cargo.toml"))
        .context("read engine-kit's Cargo.toml")?;
    write(&folder.join("Cargo.toml"), &manifest(name, &kit, &code)?)?;
    write(&folder.join("README.md"), &readme(name))
}

/// Copies a folder of sources under new names, and returns all their text.
fn copy(from: &Path, to: &Path, name: &str) -> Result<String> {
    std::fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let mut code = String::new();
    for entry in std::fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry.with_context(|| format!("list {}", from.display()))?;
        let file = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            code += &copy(&entry.path(), &to.join(renamed(&file, name)), name)?;
            continue;
        }
        let text = std::fs::read_to_string(entry.path())
            .with_context(|| format!("read {}", entry.path().display()))?;
        let text = renamed(&text, name);
        let at_top = from.ends_with("fake") && file == "mod.rs";
        write(&to.join(if at_top { "lib.rs".to_owned() } else { renamed(&file, name) }), &text)?;
        code += &text;
    }
    Ok(code)
}

/// The Fake's words, in the new engine's name. What it takes from the kit around it, it takes from the kit's crate.
fn renamed(text: &str, name: &str) -> String {
    let capital: String =
        name.char_indices().map(|(at, c)| if at == 0 { c.to_ascii_uppercase() } else { c }).collect();
    text.replace("crate::fake", "crate")
        .replace("crate::conformance", "mainstay_engine_kit::conformance")
        .replace("crate::memory", "mainstay_engine_kit::memory")
        .replace("crate::unreliable", "mainstay_engine_kit::unreliable")
        .replace("fake", name)
        .replace("Fake", &capital)
        .replace("FAKE", &name.to_uppercase())
}

/// A Cargo.toml that names, of what engine-kit depends on, whatever this code uses.
fn manifest(name: &str, kit: &str, code: &str) -> Result<String> {
    let kit: toml::Table = toml::from_str(kit).context("parse engine-kit's Cargo.toml")?;
    let offered = kit
        .get("dependencies")
        .and_then(|table| table.as_table())
        .context("engine-kit has no dependencies")?;
    let mut used: Vec<&str> = offered.keys().map(String::as_str).collect();
    used.push("mainstay-engine-kit");
    used.retain(|dependency| code.contains(&format!("{}::", dependency.replace('-', "_"))));
    let dependencies: String =
        used.iter().map(|dependency| format!("{dependency}.workspace = true\n")).collect();
    Ok(format!(
        "[package]
name = \"mainstay-{name}\"
version.workspace = true
edition.workspace = true
rust-version.workspace = true
license.workspace = true
publish.workspace = true

[lints]
workspace = true

[lib]
doctest = false

[dependencies]
{dependencies}"
    ))
}

fn readme(name: &str) -> String {
    format!(
        "# {name}

Versions supported, each tested against the real server:

Mechanism of each verb (snapshot, follow, mark, hold, restore, replay), with the source of each fact:

Lanes, and what a place in each is:

What is refused, and why:
"
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIT: &str = "[dependencies]\nmainstay-engine.workspace = true\nasync-trait.workspace = true\nbytes.workspace = true\n";

    /// A folder that is gone when the test is.
    struct Room(std::path::PathBuf);

    impl Room {
        fn with_fake(label: &str) -> Self {
            let room = std::env::temp_dir().join(format!("xtask-new-engine-{}-{label}", std::process::id()));
            let fake = room.join(FAKE);
            std::fs::create_dir_all(fake.join("deep")).expect("makes folders");
            let lib =
                "//! The Fake.\nmod snapshot;\npub static FAKE: Fake = Fake;\n#[async_trait::async_trait]\n";
            write(&fake.join("mod.rs"), lib).expect("writes");
            write(&fake.join("snapshot.rs"), "use crate::fake::Fake;\nuse mainstay_engine::Snapshot;\n")
                .expect("writes");
            write(&fake.join("deep/mod.rs"), "const NAME: &str = \"fake\";\n").expect("writes");
            write(&room.join("crates/engine-kit/Cargo.toml"), KIT).expect("writes");
            Self(room)
        }

        fn text(&self, path: &str) -> String {
            std::fs::read_to_string(self.0.join(path)).expect("is there")
        }
    }

    impl Drop for Room {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn copies_the_fake_under_the_new_name() {
        let room = Room::with_fake("copies");
        make(&room.0, "nats").expect("makes it");
        assert!(room.text("engines/nats/src/lib.rs").contains("pub static NATS: Nats = Nats;"));
        assert!(room.text("engines/nats/src/snapshot.rs").contains("use crate::Nats;"));
        assert!(room.text("engines/nats/src/deep/mod.rs").contains("\"nats\""));
        let manifest = room.text("engines/nats/Cargo.toml");
        assert!(manifest.contains("name = \"mainstay-nats\""));
        assert!(manifest.contains("async-trait.workspace") && manifest.contains("mainstay-engine.workspace"));
        assert!(!manifest.contains("bytes"), "what it does not use is not named");
        assert!(room.text("engines/nats/README.md").starts_with("# nats"));
    }

    #[test]
    fn overwrites_nothing_and_takes_no_odd_name() {
        let room = Room::with_fake("refuses");
        make(&room.0, "nats").expect("makes it");
        for name in ["nats", "Nats", "na-ts", "", "../x", "9p"] {
            assert!(make(&room.0, name).is_err(), "{name}");
        }
    }
}
