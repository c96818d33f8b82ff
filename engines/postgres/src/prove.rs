//! Proving a restored cluster: the engine's own checks, and a digest of all content.
//!
//! Integrity: page checksums of every file, amcheck over every B-tree (with the heap behind it) and every heap, and visibility maps
//! against the pages they speak of, since a map that says more than its page does makes index-only scans count deleted rows, which
//! neither checksums nor amcheck see.
//!
//! Content: rows and an order-independent digest of each table. Left out: unlogged and foreign tables, which no log carries.
//! Sequences may differ by what they log ahead: 32 steps.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use mainstay_engine::{Access, Check, Content, Error, Host, Kind, Layout, Prove, Result, SnapshotSource};
use tokio_postgres::Client as Sql;

use crate::connect::{self, column, quote_name, quote_text, row, rows};
use crate::pages::{self, PAGE_BYTES, Page};
use crate::{Postgres, fault};

/// How many steps a sequence logs ahead (SEQ_LOG_VALS).
const SEQUENCE_AHEAD: i64 = 32;
/// Our own extensions are made in here and dropped with it.
const SCHEMA: &str = "mainstay_checks";
const FOUND_MAX: usize = 5;
const NOTHING: &str = "no damage";

#[async_trait]
impl Prove for Postgres {
    async fn integrity(&self, layout: &Layout, _: &dyn Host, _: &dyn SnapshotSource) -> Result<Vec<Check>> {
        let access = layout.access();
        let mut checks = vec![checksums(layout, &access).await?];
        for database in databases(&access).await? {
            let sql = connect::session(&access, &access.nodes[0], &database).await?;
            prepare(&sql).await?;
            if extension(&sql, "amcheck").await? {
                checks.push(indexes(&sql, &database).await?);
                checks.push(heaps(&sql, &database).await?);
            }
            if extension(&sql, "pg_visibility").await? {
                checks.push(visibility(&sql, &database).await?);
            }
            drop_schema(&sql).await?;
        }
        Ok(checks)
    }

    async fn content(&self, access: &Access) -> Result<Vec<Content>> {
        let mut all = Vec::new();
        for database in databases(access).await? {
            let sql = connect::session(access, &access.nodes[0], &database).await?;
            begin(&sql).await?;
            tables(&sql, &database, &mut all).await?;
            sequences(&sql, &database, &mut all).await?;
            large_objects(&sql, &database, &mut all).await?;
        }
        Ok(all)
    }
}

/// The databases that can be connected to.
async fn databases(access: &Access) -> Result<Vec<String>> {
    let node =
        access.nodes.first().ok_or_else(|| Error::new(Kind::Invalid, "look into a cluster without nodes"))?;
    let sql = connect::session(access, node, "postgres").await?;
    let what = "list the databases";
    let found =
        rows(&sql, what, "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname").await?;
    found.iter().map(|row| column(row, 0, what)).collect()
}

async fn run(sql: &Sql, what: &str, text: &str) -> Result<()> {
    sql.batch_execute(text).await.map_err(|error| fault::sql(what, error))
}

/// The source's event triggers must neither refuse nor note what we do: 17 has a setting for it, and in a session of a replica's role
/// those that are not made to fire always stay silent.
const SILENT: &str = "SET session_replication_role = replica";

async fn prepare(sql: &Sql) -> Result<()> {
    run(sql, "prepare the session for checks", SILENT).await?;
    drop_schema(sql).await?;
    run(sql, "make a schema for checks", &format!("CREATE SCHEMA {SCHEMA}")).await
}

async fn drop_schema(sql: &Sql) -> Result<()> {
    let text = format!("SET client_min_messages = 'error'; DROP SCHEMA IF EXISTS {SCHEMA} CASCADE");
    run(sql, "drop the schema for checks", &text).await
}

/// Makes an extension in our schema, where this server has it; one that the database has already lies elsewhere and is
/// found by moving nothing: its functions are called by their own schema.
async fn extension(sql: &Sql, name: &str) -> Result<bool> {
    let what = "look for an extension";
    let literal = quote_text(name);
    let query = format!(
        "SELECT (SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = {literal}), \
         EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = {literal})"
    );
    let found = row(sql, what, &query).await?;
    match (found.get(0), found.get(1)) {
        (Some(schema), _) => {
            run(sql, what, &format!("SET search_path = {SCHEMA}, {}, pg_catalog", quote_name(schema)))
                .await?;
            Ok(true)
        }
        (None, Some("t")) => {
            run(sql, "make an extension", &format!("CREATE EXTENSION {name} SCHEMA {SCHEMA}")).await?;
            run(sql, what, &format!("SET search_path = {SCHEMA}, pg_catalog")).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn verdict(kind: &str, what: String, mut found: Vec<String>) -> Check {
    let more = found.len().saturating_sub(FOUND_MAX);
    found.truncate(FOUND_MAX);
    let mut text = if found.is_empty() { NOTHING.to_owned() } else { found.join("; ") };
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    Check { kind: kind.into(), what, expected: NOTHING.into(), found: text }
}

/// Every page of every relation, on disk.
async fn checksums(layout: &Layout, access: &Access) -> Result<Check> {
    let node =
        layout.nodes.first().ok_or_else(|| Error::new(Kind::Invalid, "check a cluster without nodes"))?;
    let sql = connect::session(access, &access.nodes[0], "postgres").await?;
    run(&sql, "write all pages", "CHECKPOINT").await?;
    let what = "ask whether pages carry checksums";
    if row(&sql, what, "SHOW data_checksums").await?.get(0) != Some("on") {
        let what = "page checksums: the source has none".to_owned();
        return Ok(Check { kind: "checksums".into(), what, expected: NOTHING.into(), found: NOTHING.into() });
    }
    let data = node.data();
    let (count, bad) = crate::blocking(|| {
        let mut seen = Pages { data: data.clone(), count: 0, bad: Vec::new() };
        seen.walk(&data)?;
        Ok::<_, Error>((seen.count, seen.bad))
    })?;
    Ok(verdict("checksums", format!("{count} pages"), bad))
}

struct Pages {
    data: PathBuf,
    count: u64,
    bad: Vec<String>,
}

impl Pages {
    fn walk(&mut self, folder: &Path) -> Result<()> {
        let failed = |error| Error::io(format!("list {}", folder.display()), error);
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let inside = path.strip_prefix(&self.data).unwrap_or(&path).to_string_lossy().into_owned();
            if path.is_dir() && !inside.starts_with("pg_wal") {
                self.walk(&path)?;
            } else if let Some(first) = pages::first_block(&inside) {
                self.file(&path, &inside, first)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, inside: &str, first: u32) -> Result<()> {
        use std::os::unix::fs::FileExt;
        let failed = |error| Error::io(format!("read {inside}"), error);
        let file = match std::fs::File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed)?,
        };
        let mut buffer = vec![0; 32 * PAGE_BYTES];
        let mut block = 0u32;
        loop {
            let n =
                file.read_at(&mut buffer, u64::from(block) * PAGE_BYTES as u64).map_err(failed)? / PAGE_BYTES;
            for (index, page) in buffer.chunks_exact(PAGE_BYTES).take(n).enumerate() {
                let number = block + index as u32;
                if let Page::Bad(lsn) = pages::judge(page, first.wrapping_add(number)) {
                    // The server is quiet, not stopped: a hint may be under way.
                    let mut again = vec![0; PAGE_BYTES];
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    file.read_exact_at(&mut again, u64::from(number) * PAGE_BYTES as u64).map_err(failed)?;
                    if pages::judge(&again, first.wrapping_add(number)) != Page::Good {
                        self.bad.push(format!("{inside} block {number} (LSN {lsn})"));
                    }
                }
            }
            self.count += n as u64;
            block += n as u32;
            if n == 0 {
                return Ok(());
            }
        }
    }
}

/// Runs `each` for every row of `list` (an OID and a name), and gathers what is wrong.
async fn each(sql: &Sql, list: &str, each: impl Fn(&str) -> String) -> Result<(usize, Vec<String>)> {
    let what = "list what is to be checked";
    let mut found = Vec::new();
    let all = rows(sql, what, list).await?;
    for entry in &all {
        let (oid, name): (String, String) = (column(entry, 0, what)?, column(entry, 1, what)?);
        match rows(sql, "check", &each(&oid)).await {
            Ok(wrong) => {
                found.extend(
                    wrong.iter().filter_map(|row| row.get(0)).map(|wrong| format!("{name}: {wrong}")),
                );
            }
            Err(error) if error.kind == Kind::Unreachable => return Err(error),
            Err(error) => found.push(format!("{name}: {error}")),
        }
    }
    Ok((all.len(), found))
}

async fn indexes(sql: &Sql, database: &str) -> Result<Check> {
    let list = "SELECT c.oid, c.oid::regclass FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_am a ON a.oid = c.relam \
                WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p' AND i.indisready AND i.indisvalid ORDER BY 1";
    let (count, found) =
        each(sql, list, |oid| format!("SELECT NULL FROM bt_index_check({oid}::regclass, true)")).await?;
    Ok(verdict("amcheck", format!("database {database}: {count} indexes"), found))
}

const HEAPS: &str = "SELECT c.oid, c.oid::regclass FROM pg_class c JOIN pg_am a ON a.oid = c.relam \
                     WHERE a.amname = 'heap' AND c.relkind IN ('r', 't', 'm') AND c.relpersistence = 'p' ORDER BY 1";

async fn heaps(sql: &Sql, database: &str) -> Result<Check> {
    let query = |oid: &str| {
        format!("SELECT format('block %s: %s', blkno, msg) FROM verify_heapam({oid}::regclass) LIMIT 5")
    };
    let (count, found) = each(sql, HEAPS, query).await?;
    Ok(verdict("amcheck", format!("database {database}: {count} tables"), found))
}

async fn visibility(sql: &Sql, database: &str) -> Result<Check> {
    let query = |oid: &str| {
        format!(
            "SELECT format('block %s is all-visible in the map alone', blkno) FROM pg_visibility({oid}::regclass) \
             WHERE all_visible AND NOT pd_all_visible \
             UNION ALL SELECT format('row %s is in the map as visible to all', t) FROM pg_check_visible({oid}::regclass) t LIMIT 5"
        )
    };
    let (count, found) = each(sql, HEAPS, query).await?;
    Ok(verdict("visibility", format!("database {database}: {count} tables"), found))
}

/// One instant for all that follows, and one way of writing values.
async fn begin(sql: &Sql) -> Result<()> {
    run(
        sql,
        "begin to read all content",
        "SET extra_float_digits = 1; SET bytea_output = 'hex'; SET IntervalStyle = 'postgres'; SET row_security = off; \
         SET search_path = pg_catalog; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    )
    .await
}

async fn tables(sql: &Sql, database: &str, all: &mut Vec<Content>) -> Result<()> {
    let what = "list the tables";
    let list = format!(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND (c.relkind <> 'm' OR c.relispopulated) \
         AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', '{SCHEMA}') ORDER BY 1, 2"
    );
    for table in rows(sql, what, &list).await? {
        let (schema, name): (String, String) = (column(&table, 0, what)?, column(&table, 1, what)?);
        // Sums do not depend on the order. A second hash would write each row as text once more, which is what takes the time.
        let query = format!(
            "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM ONLY {}.{} t",
            quote_name(&schema),
            quote_name(&name)
        );
        let what = format!("read table {schema}.{name}");
        let answer = row(sql, &what, &query).await?;
        all.push(Content {
            what: format!("table {database}.{schema}.{name}"),
            count: column(&answer, 0, &what)?,
            digest: answer.get(1).unwrap_or("").to_owned(),
            tolerance: 0,
        });
    }
    Ok(())
}

async fn sequences(sql: &Sql, database: &str, all: &mut Vec<Content>) -> Result<()> {
    let what = "list the sequences";
    let list = "SELECT n.nspname, c.relname, s.seqincrement FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid \
                JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relpersistence = 'p' ORDER BY 1, 2";
    for sequence in rows(sql, what, list).await? {
        let (schema, name): (String, String) = (column(&sequence, 0, what)?, column(&sequence, 1, what)?);
        let increment: i64 = column(&sequence, 2, what)?;
        let what = format!("read sequence {schema}.{name}");
        let query = format!("SELECT last_value FROM {}.{}", quote_name(&schema), quote_name(&name));
        let answer = row(sql, &what, &query).await?;
        all.push(Content {
            what: format!("sequence {database}.{schema}.{name}"),
            count: column(&answer, 0, &what)?,
            digest: String::new(),
            tolerance: increment.saturating_abs().saturating_mul(SEQUENCE_AHEAD),
        });
    }
    Ok(())
}

async fn large_objects(sql: &Sql, database: &str, all: &mut Vec<Content>) -> Result<()> {
    let what = "read large objects";
    let query = "SELECT count(*), coalesce(sum(hashtextextended(l::text, 0)), 0) FROM pg_largeobject l";
    let answer = row(sql, what, query).await?;
    let count: i64 = column(&answer, 0, what)?;
    if count > 0 {
        let digest = answer.get(1).unwrap_or("").to_owned();
        all.push(Content { what: format!("large objects of {database}"), count, digest, tolerance: 0 });
    }
    Ok(())
}
