//! What goes wrong below, in the contract's terms.

use mainstay_engine::{Error, Kind};

use crate::replication::ReplicationError;

/// A replication connection's error, while doing `what`.
pub fn replication(what: impl Into<String>, error: ReplicationError) -> Error {
    let what = what.into();
    match &error {
        ReplicationError::Server(server) => {
            let kind = of(&server.code, &server.message);
            let what = format!("{what}: {server}");
            let hint = hint_of(&server.code, &server.message)
                .or((!server.hint.is_empty()).then(|| server.hint.clone()));
            let failed = Error::new(kind, what);
            match hint {
                Some(hint) => failed.hint(hint),
                None => failed,
            }
        }
        ReplicationError::Authentication(_) => Error::new(Kind::Refused, what).source(error),
        ReplicationError::Protocol(_) => Error::new(Kind::Damaged, what).source(error),
        _ => Error::new(Kind::Unreachable, what).source(error),
    }
}

/// A query's error, while doing `what`.
pub fn sql(what: impl Into<String>, error: tokio_postgres::Error) -> Error {
    let what = what.into();
    match error.as_db_error() {
        Some(server) => {
            let code = server.code().code();
            let detail = server.detail().map(|detail| format!("; {detail}")).unwrap_or_default();
            let kind = of(code, server.message());
            let failed = Error::new(kind, format!("{what}: {} ({code}){detail}", server.message()));
            match hint_of(code, server.message()).or_else(|| server.hint().map(str::to_owned)) {
                Some(hint) => failed.hint(hint),
                None => failed,
            }
        }
        None => Error::new(Kind::Unreachable, what).source(error),
    }
}

/// The settings without which there is no log to be had. They take a restart, so trying again is no help.
pub(crate) const NO_LOG: &str = "in the server's configuration set wal_level = replica (or logical) and max_wal_senders and max_replication_slots \
                      to 10 each, and restart it";

/// Whether the server is not set up to give its log to anybody.
fn has_no_log(code: &str, message: &str) -> bool {
    let says = |words: &str| message.contains(words);
    match code {
        // 17 and later put the setting's name in quotes.
        "53300" => says("max_wal_senders") && says("(currently 0)"),
        "55000" => says("wal_level") || says("WAL level not sufficient") || says("max_replication_slots"),
        _ => false,
    }
}

fn of(code: &str, message: &str) -> Kind {
    if has_no_log(code, message) { Kind::Refused } else { of_code(code) }
}

fn of_code(code: &str) -> Kind {
    match code {
        // Starting up, shutting down, crashed, too many connections: it may be well in a moment.
        "57P01" | "57P02" | "57P03" | "53300" => Kind::Unreachable,
        "58P01" => Kind::LogGone,
        "XX001" | "XX002" => Kind::Damaged,
        // A slot in use by the link that we have just lost.
        "55006" => Kind::Unreachable,
        "42501" => Kind::Refused,
        _ if code.starts_with("28") => Kind::Refused,
        _ if code.starts_with("08") => Kind::Unreachable,
        _ => Kind::Server,
    }
}

fn hint_of(code: &str, message: &str) -> Option<String> {
    match code {
        _ if has_no_log(code, message) => Some(NO_LOG.into()),
        "53300" if message.contains("max_wal_senders") => {
            Some("raise max_wal_senders: standbys and other tools use all there are".into())
        }
        "42501" => {
            Some("grant the role what is missing: ALTER ROLE … REPLICATION; GRANT pg_monitor TO …".into())
        }
        "28000" if message.contains("pg_hba") => Some(
            "let the role in: a pg_hba.conf line for database `replication` and one for database `postgres`"
                .into(),
        ),
        "28P01" => Some("the password is not that role's".into()),
        "53400" => Some("raise max_replication_slots, or drop a slot that nobody needs".into()),
        _ => None,
    }
}
