//! Work on several clusters at once.
//!
//! Engines block threads while they copy and feed, and what shares a task with that stands still. So where there are several clusters, each one's
//! blocking work gets a task of its own; where one fails or somebody asks to stop, the others are stopped, and waited for, since nobody may
//! remove a folder that is still written to. So whoever wants to end it says so by its progress, and lets it end; what is merely dropped ends
//! a little later.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{self, StreamExt};
use mainstay_engine::{self as engine, Kind, Progress, Stoppable};
use tokio::task::JoinSet;

use crate::error::{Doing, Error, Result};

/// How many clusters are restored, or looked at, at once: more would only share the same disks and cores.
const AT_ONCE: usize = 2;
/// How often is looked whether to stop.
const LOOK: Duration = Duration::from_millis(50);
/// How long work may take to see for itself that it is to stop, and to put away what it began.
const GRACE: Duration = Duration::from_secs(2);

/// Does `work` for each of `items`, [`AT_ONCE`] at a time; the results are in their order.
///
/// # Errors
/// The first in their order that is more than having been stopped, all others having ended.
pub(crate) async fn together<'a, I, T: 'a, F>(
    items: impl IntoIterator<Item = I>,
    progress: &Arc<dyn Progress>,
    work: impl Fn(I, Turn) -> F,
) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + Send + 'a,
{
    let items: Vec<I> = items.into_iter().collect();
    let turn = Turn { stoppable: Stoppable::new(Arc::clone(progress)), is_alone: items.len() == 1 };
    let mut runs = Vec::new();
    for item in items {
        runs.push(one_of_them(turn.stoppable.clone(), work(item, turn.clone())).boxed());
    }
    let done: Vec<Result<T>> = stream::iter(runs).buffered(AT_ONCE).collect().await;
    let (mut all, mut stopped) = (Vec::new(), None);
    for one in done {
        match one {
            Ok(one) => all.push(one),
            Err(Error::Engine { what, source }) if source.kind == Kind::Cancelled => {
                stopped.get_or_insert(Error::Engine { what, source });
            }
            // One that was stopped because of another is not the reason.
            Err(error) => return Err(error),
        }
    }
    stopped.map_or(Ok(all), Err)
}

async fn one_of_them<T>(stoppable: Stoppable, work: impl Future<Output = Result<T>>) -> Result<T> {
    // One that had no turn yet does not begin.
    stoppable.check().doing(|| "begin with the next cluster".to_owned())?;
    let done = work.await;
    if done.is_err() {
        stoppable.stop();
    }
    done
}

/// One cluster's turn.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    stoppable: Stoppable,
    /// There is no other that it could hold up.
    is_alone: bool,
}

impl Turn {
    /// The progress of its work, by which that hears that it is to stop.
    pub fn progress(&self) -> Arc<dyn Progress> {
        Arc::new(self.stoppable.clone())
    }

    /// Does work that may block, until it is done or is to stop.
    ///
    /// # Errors
    /// The work's; `Cancelled`; `Io` if it panicked in its task.
    pub async fn apart<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let ended = if self.is_alone {
            tokio::select! {
                done = work => return done,
                () = self.overdue() => stopped(),
            }
        } else {
            let mut guard = StopOnDrop { stoppable: &self.stoppable, ended: false };
            let mut tasks = JoinSet::new();
            tasks.spawn(work);
            let joined = tokio::select! {
                joined = tasks.join_next() => joined,
                () = self.overdue() => {
                    tasks.abort_all();
                    tasks.join_next().await
                }
            };
            guard.ended = true;
            match joined {
                Some(Ok(done)) => return done,
                Some(Err(error)) if error.is_cancelled() => stopped(),
                Some(Err(error)) => engine::Error::new(Kind::Io, "a task ended early").source(error),
                None => stopped(),
            }
        };
        Err(ended).doing(|| "wait for a cluster's work".to_owned())
    }

    /// Returns when it was to stop [`GRACE`] ago.
    async fn overdue(&self) {
        while !self.stoppable.cancelled() {
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep(GRACE).await;
    }
}

fn stopped() -> engine::Error {
    engine::Error::new(Kind::Cancelled, "stopped on request")
}

/// What blocks goes on for a while when its task is gone: it hears that it is to stop.
struct StopOnDrop<'a> {
    stoppable: &'a Stoppable,
    ended: bool,
}

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.stoppable.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use mainstay_engine::Quiet;

    use super::*;

    fn quiet() -> Arc<dyn Progress> {
        Arc::new(Quiet)
    }

    fn turn(is_alone: bool) -> Turn {
        Turn { stoppable: Stoppable::new(quiet()), is_alone }
    }

    /// Blocks its thread until `until` says so, or it is told to stop.
    fn block(progress: &Stoppable, until: impl Fn() -> bool) -> Result<()> {
        tokio::task::block_in_place(|| {
            while !until() {
                progress.check().doing(|| "block".to_owned())?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_blocks_does_not_hold_up_the_other() {
        let begun = Arc::new(AtomicUsize::new(0));
        // Each waits for the other to have begun.
        let quiet = quiet();
        let done = together([1, 2], &quiet, |item, turn| {
            let begun = begun.clone();
            async move {
                let inner = turn.stoppable.clone();
                turn.apart(async move {
                    begun.fetch_add(1, Ordering::SeqCst);
                    block(&inner, || begun.load(Ordering::SeqCst) == 2)?;
                    Ok(item * 10)
                })
                .await
            }
        });
        assert_eq!(done.await.unwrap(), [10, 20]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn when_one_fails_the_others_end_and_the_reason_is_told() {
        let ended = Arc::new(AtomicUsize::new(0));
        let quiet = quiet();
        let done = together([0, 1, 2, 3], &quiet, |item, turn| {
            let ended = ended.clone();
            async move {
                let inner = turn.stoppable.clone();
                turn.apart(async move {
                    let done = match item {
                        1 => Err(Error::invalid("no such thing")),
                        _ => block(&inner, || false),
                    };
                    ended.fetch_add(1, Ordering::SeqCst);
                    done
                })
                .await
            }
        });
        assert_eq!(done.await.unwrap_err().to_string(), "no such thing");
        // The first ended; those that had no turn never began.
        assert_eq!(ended.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_stopped_has_ended_when_that_is_told() {
        struct Ended(Arc<AtomicUsize>);
        impl Drop for Ended {
            fn drop(&mut self) {
                std::thread::sleep(Duration::from_millis(20));
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let one = |is_alone| async move {
            let (turn, count) = (turn(is_alone), Arc::new(AtomicUsize::new(0)));
            let ended = Ended(count.clone());
            // It never looks whether to stop.
            let work = turn.apart(async move {
                let _ended = ended;
                std::future::pending::<Result<()>>().await
            });
            turn.stoppable.stop();
            match work.await {
                Err(Error::Engine { source, .. }) => assert_eq!(source.kind, Kind::Cancelled),
                other => panic!("{other:?}"),
            }
            assert_eq!(count.load(Ordering::SeqCst), 1);
        };
        tokio::join!(one(true), one(false));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_dropped_hears_that_it_is_to_stop() {
        let turn = turn(false);
        let (inner, (tell, told)) = (turn.stoppable.clone(), std::sync::mpsc::channel());
        let work = turn.apart(async move {
            let done = block(&inner, || false);
            tell.send(done.is_err()).ok();
            done
        });
        assert!(tokio::time::timeout(Duration::from_millis(20), work).await.is_err());
        assert!(told.recv_timeout(Duration::from_secs(10)).unwrap());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_panic_is_an_error() {
        let done: Result<()> = turn(false).apart(async { panic!("of a test") }).await;
        assert!(done.unwrap_err().to_string().contains("wait for a cluster"));
    }
}
