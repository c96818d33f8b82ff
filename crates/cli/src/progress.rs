//! Progress on a terminal: a bar where the size is known, a spinner where it is not, nothing where nobody looks.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mainstay_engine::Progress;

/// One piece of long work.
pub struct Bar {
    bar: ProgressBar,
    title: String,
    stage: Mutex<(String, Instant)>,
    stop: Arc<AtomicBool>,
    terminal: bool,
}

impl Bar {
    /// A bar named `title`; `stop` is set when somebody pressed Ctrl-C.
    pub fn new(title: impl Into<String>, stop: Arc<AtomicBool>) -> Arc<Self> {
        let terminal = std::io::stderr().is_terminal();
        let target =
            if terminal { ProgressDrawTarget::stderr_with_hz(5) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        if terminal {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let stage = Mutex::new((String::new(), Instant::now()));
        Arc::new(Self { bar, title: title.into(), stage, stop, terminal })
    }

    /// The work is over; the line goes away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn stage(&self, name: &str) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.terminal && stage.0 != name {
            tracing::info!(work = self.title, stage = name, "begins");
        }
        *stage = (name.to_owned(), Instant::now());
        self.bar.set_length(0);
        self.bar.set_position(0);
        self.bar.set_message(format!("{}: {name}", self.title));
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {bytes} ({bytes_per_sec})") {
            self.bar.set_style(style);
        }
    }

    fn expect(&self, bytes: u64) {
        self.bar.set_length(bytes);
        if bytes == 0 {
            return;
        }
        if let Ok(style) =
            ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} ({bytes_per_sec}, {eta})")
        {
            self.bar.set_style(style);
        }
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
