//! What several chores share: where the repository is, which files are in it, and running a program in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The repository's root: the folder above this crate, wherever the command was called from.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// A command that will run in the repository's root.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// The cargo that runs this very process.
pub fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command with its output shown, and fails when it does.
pub fn show(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", name(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", name(command));
    }
    Ok(())
}

/// Runs a command and returns its stdout; its stderr is shown.
pub fn read(command: &mut Command) -> Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("start {}", name(command)))?;
    if !output.status.success() {
        bail!("{} failed ({})", name(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed something that is not UTF-8", name(command)))
}

/// The program and its arguments, as a person would type them.
pub fn name(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Every file of the repository that is tracked, or would be, relative to the root, in order.
pub fn files() -> Result<Vec<PathBuf>> {
    let listing =
        read(command("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    let mut files: Vec<PathBuf> =
        listing.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    files.retain(|path| root().join(path).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

/// A program that `scripts/engines` keeps in its folder of pinned tools.
pub fn pinned_tool(program: &str) -> Result<PathBuf> {
    let folder = read(command("scripts/engines").arg("--where"))?;
    let path = Path::new(folder.trim()).join("tools/bin").join(program);
    if !path.is_file() {
        bail!("{program} is not installed: run scripts/engines");
    }
    Ok(path)
}

/// cargo's own view of the workspace, as JSON. `dependencies` adds the resolved tree of everything below it.
pub fn metadata(dependencies: bool) -> Result<serde_json::Value> {
    let mut cargo = cargo();
    cargo.args(["metadata", "--format-version", "1"]);
    if dependencies {
        cargo.args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
    } else {
        cargo.arg("--no-deps");
    }
    serde_json::from_str(&read(&mut cargo)?).context("read cargo metadata")
}
