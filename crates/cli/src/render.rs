//! From the crates' own types to those that leave.

use mainstay_api as api;
use mainstay_engine::Engine;
use mainstay_model::{Lane, Place, Position};

use crate::failure::{Failure, Result};

/// A position, each place as the engine writes it.
pub fn position(engine: &dyn Engine, position: &Position) -> api::Position {
    position.0.iter().map(|(lane, place)| (lane.to_string(), engine.write_place(place))).collect()
}

/// Reads `LANE=PLACE[,LANE=PLACE…]`, or one place without a lane where `only` is the cluster's only lane.
pub fn read_position(engine: &dyn Engine, text: &str, only: Option<&Lane>) -> Result<Position> {
    let mut places = Vec::<(Lane, Place)>::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (lane, place) = match (part.split_once('='), only) {
            (Some((lane, place)), _) => (Lane::new(lane.trim()), place.trim()),
            (None, Some(lane)) => (lane.clone(), part),
            (None, None) => {
                let message = format!("`{part}` names no lane, and there are several");
                return Err(Failure::usage(
                    "usage",
                    message,
                    "write LANE=PLACE,LANE=PLACE…; `recover window` shows the lanes",
                ));
            }
        };
        places.push((lane, engine.read_place(place).map_err(|e| Failure { exit: 2, ..Failure::from(e) })?));
    }
    if places.is_empty() {
        return Err(Failure::usage("usage", "the position is empty", "write LANE=PLACE"));
    }
    Ok(places.into_iter().collect())
}
