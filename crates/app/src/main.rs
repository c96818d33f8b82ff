//! The one binary, and the only list of engines.

use std::process::ExitCode;
use std::sync::LazyLock;

use mainstay_engine::Engine;
use mainstay_postgres::Postgres;
use mainstay_redis::REDIS;

static POSTGRES: LazyLock<Postgres> = LazyLock::new(Postgres::new);

/// Every engine that this binary knows.
static ENGINES: LazyLock<[&'static dyn Engine; 2]> = LazyLock::new(|| [&*POSTGRES, &REDIS]);

fn main() -> ExitCode {
    mainstay_cli::main(&*ENGINES)
}
