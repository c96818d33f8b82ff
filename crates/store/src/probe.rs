//! Tries a store's promises before a vault is trusted to it.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;

use crate::runtime::run;
use crate::{Error, Kind, Result, Store};

/// What a probe found of a store that is fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// How long one small durable write took, at the median.
    pub write: Duration,
}

const RACERS: usize = 16;
const RACES: usize = 4;

pub(crate) async fn probe(store: &Store) -> Result<Probed> {
    let folder = format!("probe-{:016x}", rand::random::<u64>());
    let probed = try_promises(store, &folder).await;
    let cleaned = clean(store, &folder).await;
    let probed = probed?;
    cleaned?;
    Ok(probed)
}

async fn try_promises(store: &Store, folder: &str) -> Result<Probed> {
    let unfit = |what: String| Error::new(Kind::Unfit, "probe", store.name()).source(what);

    let mut times = Vec::new();
    let content: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for n in 0..5 {
        let begun = std::time::Instant::now();
        store.put(&format!("{folder}/write/{n}"), content.clone()).await?;
        times.push(begun.elapsed());
    }
    times.sort();

    let key = format!("{folder}/write/0");
    let whole = store.get(&key).await?;
    if whole != content {
        return Err(unfit("it gives other bytes than were written".into()));
    }
    for (start, length) in [(0, 1), (65_536, 20_000), (99_990, 500)] {
        let part = store.get_range(&key, start, length).await?;
        let from = usize::try_from(start).unwrap_or(0);
        let to = from.saturating_add(usize::try_from(length).unwrap_or(0)).min(content.len());
        if part != content[from..to] {
            return Err(unfit(format!(
                "{length} bytes from {start} on are not those that were written there"
            )));
        }
    }
    if store.head(&key).await?.bytes != content.len() as u64 {
        return Err(unfit("it says another size than was written".into()));
    }

    let listed = store.list(&format!("{folder}/write")).await?;
    if listed.len() != 5 || listed.iter().any(|object| object.bytes != content.len() as u64) {
        return Err(unfit(format!("it lists {} objects right after 5 were written", listed.len())));
    }
    let level = store.list_level(folder).await?;
    if level.folders != ["write"] || !level.objects.is_empty() {
        return Err(unfit("it does not list folders".into()));
    }

    for race in 0..RACES {
        race_to_create(store, &format!("{folder}/race/{race}")).await?;
    }

    store.delete(&key).await?;
    if store.list(&format!("{folder}/write")).await?.len() != 4 {
        return Err(unfit("it lists an object that was deleted".into()));
    }
    match store.get(&key).await {
        Err(error) if error.kind == Kind::NotFound => {}
        Err(error) => return Err(error),
        Ok(_) => return Err(unfit("it gives an object that was deleted".into())),
    }
    Ok(Probed { write: times[times.len() / 2] })
}

/// Sixteen at once create one object: exactly one may succeed, and its bytes must be there.
async fn race_to_create(store: &Store, key: &str) -> Result<()> {
    let unfit = |what: String| Error::new(Kind::Unfit, "probe", store.name()).source(what);
    let racers = (0..RACERS).map(|racer| {
        let (store, key) = (store.clone(), key.to_owned());
        run(async move {
            let bytes = Bytes::from(format!("{racer} {:016x}", rand::random::<u64>()));
            (store.create(&key, bytes.clone()).await, bytes)
        })
    });
    let mut winners = Vec::new();
    for (made, bytes) in join_all(racers).await {
        match made {
            Ok(()) => winners.push(bytes),
            Err(error) if error.kind == Kind::Exists => {}
            Err(error) => return Err(error),
        }
    }
    match &winners[..] {
        [winner] if store.get(key).await? == *winner => Ok(()),
        [_] => Err(unfit("the winner of a race to create an object is not what is there".into())),
        _ => Err(unfit(format!(
            "{} of {RACERS} writers at once were told that they had created one object",
            winners.len()
        ))),
    }
}

async fn clean(store: &Store, folder: &str) -> Result<()> {
    for object in store.list(folder).await? {
        store.delete(&object.key).await?;
    }
    Ok(())
}
