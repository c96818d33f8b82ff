//! The server's configuration files, where they lie outside the data directory (Debian's do): stored under `mainstay/`.
//!
//! They are for whoever has to set up the server anew; a restore applies none of them. A role that may not read them is no reason
//! to go without a snapshot. What they hold may be secret, and is never logged.

use std::path::Path;

use mainstay_engine::{Error, Kind, Result};
use tokio_postgres::Client as Sql;

use super::{Job, put};
use crate::{connect, fault};

/// The settings that name the files, and what these are called in the snapshot.
const FILES: &[(&str, &str)] =
    &[("config_file", "postgresql.conf"), ("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")];
const BYTES_MAX: i64 = 4 << 20;

/// Stores the files that lie outside the data directory. `beside` says that the server's files are this machine's.
pub(super) async fn copy(job: &Job<'_>, sql: &Sql, beside: bool) -> Result<()> {
    for (setting, name) in FILES {
        match read(sql, setting, beside).await {
            Ok(Some(content)) => put(job, format!("mainstay/{name}"), content).await?,
            Ok(None) => {}
            Err(error) => {
                let cluster = &job.access.cluster;
                tracing::warn!(cluster, setting, %error, "a configuration file is not in the snapshot");
            }
        }
    }
    Ok(())
}

/// `None` where the data directory has the file already, or where there is none.
async fn read(sql: &Sql, setting: &str, beside: bool) -> Result<Option<Vec<u8>>> {
    let what = format!("ask for {setting}");
    let query = format!("SELECT current_setting('data_directory'), current_setting('{setting}')");
    let answer = connect::row(sql, &what, &query).await?;
    let (data, path): (String, String) =
        (connect::column(&answer, 0, &what)?, connect::column(&answer, 1, &what)?);
    if path.is_empty() || Path::new(&path).starts_with(&data) {
        return Ok(None);
    }
    let content = match std::fs::metadata(&path) {
        Ok(data) if beside && data.len() < BYTES_MAX as u64 => std::fs::read(&path).ok(),
        _ => None,
    };
    match content {
        Some(content) => Ok(Some(content)),
        None => ask(sql, &path).await,
    }
}

async fn ask(sql: &Sql, path: &str) -> Result<Option<Vec<u8>>> {
    let what = format!("read {path}");
    let query = "SELECT pg_read_binary_file($1, 0, $2, true)";
    let answer =
        sql.query_one(query, &[&path, &BYTES_MAX]).await.map_err(|error| fault::sql(&*what, error))?;
    let content: Option<Vec<u8>> = answer.try_get(0).map_err(|error| fault::sql(&*what, error))?;
    match content {
        Some(content) if content.len() as i64 == BYTES_MAX => {
            Err(Error::new(Kind::Unsupported, format!("{what}: {BYTES_MAX} bytes or more")))
        }
        content => Ok(content),
    }
}
