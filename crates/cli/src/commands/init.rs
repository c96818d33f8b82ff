//! `mainstay init`: a commented fleet file to start from.

use std::io::Write;

use super::Cx;
use crate::args::InitArgs;
use crate::failure::{Failure, Result};

pub fn run(cx: &Cx, args: &InitArgs) -> Result {
    let path = &cx.global.fleet;
    let mut options = std::fs::File::options();
    options.write(true);
    if args.force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let text = mainstay_fleet::template(cx.engines);
    options.open(path).and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::AlreadyExists {
            "edit it, name another with --fleet, or overwrite it with --force"
        } else {
            "name a file in a folder that you may write to with --fleet"
        };
        let mut failure = Failure::of("io", &error, Some(hint.to_owned()));
        failure.message = format!("write {}: {}", path.display(), failure.message);
        failure
    })?;
    #[derive(serde::Serialize)]
    struct Written {
        written: String,
    }
    let written = Written { written: path.display().to_string() };
    cx.printer.result(&written, |w| format!("wrote {}; next: mainstay check", w.written))
}
