//! Memory stays under its limit, whatever the size of the data.

use std::io::Read;
use std::process::Command;

use mainstay_engine::{Cut, Quiet, SnapshotSink, SnapshotSource};
use mainstay_store::Folder;
use mainstay_vault::VerifyOptions;

use crate::kit::{Kit, PAGE, now, spec, taken};

const FILES: u64 = 6;
const FILE_BYTES: u64 = 100 << 20;
const LIMIT_KIB: u64 = 256 << 10;

/// Content that is made as it is read, and does not compress.
struct Noise {
    state: u64,
    left: u64,
}

impl Read for Noise {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        for chunk in into[..n].chunks_mut(8) {
            self.state = self.state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            chunk.copy_from_slice(&(self.state ^ self.state >> 29).to_le_bytes()[..chunk.len()]);
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// Runs itself in a process of its own, since other tests' memory would be counted here.
#[test]
fn memory_is_bounded() {
    const CHILD: &str = "MAINSTAY_TEST_MEMORY_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory::memory_is_bounded", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::on(Folder::open(folder.path().to_owned()).unwrap());
    let cluster = kit.cluster();
    let names: Vec<_> = (0..FILES).map(|n| format!("base/{n}")).collect();
    for _ in 0..2 {
        let writer = now(cluster.begin("7001", "test")).unwrap();
        std::thread::scope(|scope| {
            for (n, name) in names.iter().enumerate() {
                let writer = &writer;
                scope.spawn(move || {
                    let cut = if n == 0 { Cut::Content } else { Cut::Pages(PAGE) };
                    writer.put(&spec(name, cut), &mut Noise { state: n as u64, left: FILE_BYTES }).unwrap();
                });
            }
        });
        let record = now(writer.commit(taken(1))).unwrap();
        let reader = now(cluster.open_snapshot(&record.id)).unwrap();
        let target = kit.home.path().join(&record.id);
        let places: Vec<_> = names.iter().map(|name| (name.clone(), target.join(name))).collect();
        reader.place(&places, None, 4, &Quiet).unwrap();
        std::fs::remove_dir_all(&target).unwrap();
    }
    let verified = now(cluster.verify(&VerifyOptions::default())).unwrap();
    assert_eq!(verified.damaged, []);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches("kB").trim().parse().unwrap();
    assert!(peak_kib < LIMIT_KIB, "{peak_kib} KiB");
}
