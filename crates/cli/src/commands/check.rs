//! `mainstay check`: every mistake of the fleet file at once.

use mainstay_api::{Checked, FleetMistake};
use mainstay_fleet::Mistakes;
use mainstay_model::Fleet;

use super::Cx;
use crate::failure::{Failure, Result};

pub fn run(cx: &Cx) -> Result {
    let fleet = load(cx)?;
    cx.printer.result(&Checked { errors: Vec::new() }, |_| {
        let (clusters, groups) = (fleet.clusters.len(), fleet.recovery_groups.len());
        format!(
            "{}: fleet {}, {clusters} clusters, {groups} recovery groups: no mistakes",
            cx.global.fleet.display(),
            fleet.name
        )
    })
}

/// Reads the fleet file, or prints all its mistakes and fails with 2.
pub fn load(cx: &Cx) -> Result<Fleet> {
    mainstay_fleet::load(&cx.global.fleet, &cx.global.env, cx.engines)
        .map_err(|mistakes| report(cx, &mistakes))
}

fn report(cx: &Cx, mistakes: &Mistakes) -> Failure {
    let errors = mistakes.0.iter().map(row).collect::<Vec<_>>();
    let count = errors.len();
    cx.printer.say(mistakes.to_string());
    let file = cx.global.fleet.display();
    let message =
        if count == 1 { format!("{file} has a mistake") } else { format!("{file} has {count} mistakes") };
    let hint = mistakes.0.first().map_or_else(String::new, |m| m.hint.clone());
    let mut failure = Failure::usage("fleet-file", message, hint);
    if cx.is_check {
        // Stdout's one value is the list; where stdout cannot be written to, stderr has it all.
        failure.printed = cx.printer.result(&Checked { errors }, |_| String::new()).is_ok();
    }
    failure
}

fn row(mistake: &mainstay_fleet::Mistake) -> FleetMistake {
    FleetMistake {
        code: mistake.code.to_owned(),
        message: mistake.message.clone(),
        file: mistake.file.clone(),
        line: mistake.line as usize,
        column: mistake.column as usize,
        hint: Some(mistake.hint.clone()).filter(|h| !h.is_empty()),
    }
}
