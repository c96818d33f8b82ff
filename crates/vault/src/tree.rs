//! What every key in a vault is, for those who walk over all of it.

use mainstay_model::Lane;
use mainstay_store::Object;

use crate::LogObject;
use crate::log::parse_object;
use crate::manifest::Beside;

/// What an object is, by its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Format,
    Keys,
    Small,
    /// Of the snapshot or attempt of that id.
    Snap {
        incarnation: String,
        id: String,
        name: String,
        what: Beside,
    },
    /// With its id.
    Pack {
        incarnation: String,
        id: String,
    },
    Log(Box<LogObject>),
    Strange,
}

/// Sorts a key. Below `c/`, a cluster's prefix has four parts.
pub(crate) fn what(object: &Object) -> What {
    let parts: Vec<_> = object.key.split('/').collect();
    match parts[..] {
        ["format.json"] => What::Format,
        ["keys", _] => What::Keys,
        ["leases", _, _, _] | ["pins", _] | ["states", _, _] => What::Small,
        ["points" | "proofs", _, _, _, _] | ["tombs", _, _, _, _] => What::Small,
        ["c", _, _, _, incarnation, "snap", id, name] => Beside::of(name).map_or(What::Strange, |what| {
            What::Snap { incarnation: incarnation.into(), id: id.into(), name: name.into(), what }
        }),
        ["c", _, _, _, incarnation, "packs", shard, id]
            if id.split_once('-').is_some_and(|(_, r)| r.starts_with(shard)) =>
        {
            What::Pack { incarnation: incarnation.into(), id: id.into() }
        }
        ["c", _, _, _, incarnation, "log", lane, generation, name] => {
            let below = format!("{generation}/{name}");
            let log = parse_object(&object.key, &below, incarnation, &Lane(lane.into()), object.bytes);
            log.map_or(What::Strange, |log| What::Log(Box::new(log)))
        }
        _ => What::Strange,
    }
}
