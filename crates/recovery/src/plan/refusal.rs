//! What cannot be had, and what can be had instead.

use std::fmt;

use mainstay_model::Instant;
use serde::Serialize;

use crate::catalogue::Catalogue;

/// Why something cannot be had, and what can be had instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// A stable code: `no-snapshot`, `out-of-window`, `hole`, `damaged`, `vault-no-identity`, `target-ambiguous`, `invalid`, ….
    pub code: &'static str,
    /// The cluster, or the group.
    pub subject: String,
    /// What cannot be had.
    pub what: String,
    /// What can be had instead.
    pub instead: Vec<String>,
    /// The damaged object, where one is why.
    #[serde(skip)]
    pub object: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.what)
    }
}

impl Refusal {
    pub(super) fn new(code: &'static str, subject: &str, what: impl Into<String>) -> Self {
        Self { code, subject: subject.to_owned(), what: what.into(), instead: vec![], object: None }
    }

    pub(super) fn instead(mut self, what: impl Into<String>) -> Self {
        self.instead.push(what.into());
        self
    }

    pub(super) fn instead_each(mut self, what: impl IntoIterator<Item = String>) -> Self {
        self.instead.extend(what);
        self
    }

    /// What a failure of the vault means for a plan.
    pub(super) fn of_vault(subject: &str, error: &mainstay_vault::Error) -> Self {
        match error {
            mainstay_vault::Error::Damaged { object, .. } => {
                Self { object: Some(object.clone()), ..Self::new("damaged", subject, error.to_string()) }
            }
            other => Self::new(other.code(), subject, other.to_string()).instead_each(other.hint()),
        }
    }

    /// There is none.
    pub(super) fn no_snapshot(subject: &str, catalogue: &Catalogue) -> Self {
        let what = match catalogue.damaged.first() {
            None => "it has no snapshot".to_owned(),
            Some((id, reason)) => {
                format!("it has no snapshot that can be read: the manifest of {id} is damaged ({reason})")
            }
        };
        Self::new("no-snapshot", subject, what).instead(format!("take one: `mainstay backup run {subject}`"))
    }

    /// No snapshot and log reach a time.
    pub(super) fn time(subject: &str, at: Instant, catalogue: &Catalogue) -> Self {
        let windows = catalogue.past.windows();
        let (Some(first), Some(last)) =
            (windows.iter().map(|w| w.from).min(), windows.iter().map(|w| w.to).max())
        else {
            return Self::no_snapshot(subject, catalogue);
        };
        let mut refusal = if at < first {
            Self::new("out-of-window", subject, format!("{at} is before its window, which begins at {first}"))
                .instead(format!("the earliest instant: --at {first}"))
        } else if at > last {
            Self::new("out-of-window", subject, format!("{at} is behind its window, which ends at {last}"))
                .instead(format!("the latest instant: --at {last}, or --latest"))
        } else {
            let hole =
                catalogue.past.holes(Instant::MAX).into_iter().find(|hole| hole.from < at && at < hole.to);
            let (what, ends) = match hole {
                Some(h) => {
                    let what = format!("{at} lies in a hole from {} to {}: {}", h.from, h.to, h.reason);
                    let before = format!("the instant before it: --at {}", h.from);
                    (what, vec![before, format!("the one behind it: --at {}", h.to)])
                }
                None => (format!("no snapshot and unbroken log reach {at}"), self::windows(catalogue)),
            };
            Self::new("hole", subject, what).instead_each(ends)
        };
        for (id, reason) in &catalogue.damaged {
            refusal.what.push_str(&format!("; the manifest of snapshot {id} is damaged ({reason})"));
        }
        refusal
    }
}

/// The windows, in words.
pub(super) fn windows(catalogue: &Catalogue) -> Vec<String> {
    let windows = catalogue.past.windows();
    windows.iter().map(|w| format!("any instant from {} to {}", w.from, w.to)).collect()
}
