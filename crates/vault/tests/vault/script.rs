//! The script in docs/ restores a snapshot without Mainstay.

use std::path::Path;
use std::process::Command;

use mainstay_store::Folder;

use crate::kit::{Kit, bytes, compare_disk, sample, snapshot};

#[test]
fn the_script_restores_what_mainstay_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::on(Folder::open(folder.path().to_owned()).unwrap());
    let mut files = sample();
    snapshot(&kit.cluster(), &files).unwrap();
    // The second one takes over from the first.
    files.get_mut("base/1/1000").unwrap().1[8192 * 3..8192 * 5].copy_from_slice(&bytes(88, 8192 * 2));
    let record = snapshot(&kit.cluster(), &files).unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/restore-without-mainstay.sh");
    let identity = kit.keys().join("identity.txt");
    let run = |args: &[&str]| {
        let output =
            Command::new("bash").arg(&script).arg(folder.path()).arg(&identity).args(args).output().unwrap();
        (
            output.status.success(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    let (listed, text) = run(&[]);
    assert!(listed && text.contains(&record.id), "{text}");
    let target = kit.home.path().join("restored");
    let (restored, text) = run(&[&record.id, &target.to_string_lossy()]);
    assert!(restored, "{text} (age, zstd and jq are installed by scripts/engines)");
    compare_disk(&target, &files);
    // Nothing else came along.
    let output =
        Command::new("find").arg(&target).args(["-mindepth", "1", "-printf", "%P\n"]).output().unwrap();
    let found: Vec<_> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    let mut parents: std::collections::BTreeSet<String> = files.keys().cloned().collect();
    for path in files.keys() {
        parents.extend(
            Path::new(path)
                .ancestors()
                .skip(1)
                .map(|p| p.to_string_lossy().into_owned())
                .filter(|p| !p.is_empty()),
        );
    }
    assert_eq!(found.into_iter().collect::<std::collections::BTreeSet<_>>(), parents);
    let (again, _) = run(&[&record.id, &target.to_string_lossy()]);
    assert!(!again, "it wrote over what was there");
}
