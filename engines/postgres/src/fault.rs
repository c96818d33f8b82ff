//! What goes wrong below, in the contract's terms.

use mainstay_engine::{Error, Kind};

use crate::replication::ReplicationError;

/// A replication connection's error, while doing `what`.
pub fn replication(what: impl Into<String>, error: ReplicationError) -> Error {
    let what = what.into();
    match &error {
        ReplicationError::Server(server) => {
            let kind = of_code(&server.code);
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
            let failed = Error::new(of_code(code), format!("{what}: {} ({code}){detail}", server.message()));
            match hint_of(code, server.message()).or_else(|| server.hint().map(str::to_owned)) {
                Some(hint) => failed.hint(hint),
                None => failed,
            }
        }
        None => Error::new(Kind::Unreachable, what).source(error),
    }
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
