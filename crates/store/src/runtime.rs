//! The runtime that all stores' input and output runs on.
//!
//! HTTP connections belong to the runtime that opened them and die with it; a runtime of our own outlives every caller's. It also lets
//! threads wait for a store without knowing whether they belong to a runtime.

use std::future::Future;
use std::sync::OnceLock;
use std::sync::mpsc;

use tokio::runtime::{Builder, Runtime};

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// Threads that wait for disks at most; each takes a stack and one object in memory.
const BLOCKING_THREADS_MAX: usize = 32;

#[expect(clippy::expect_used, reason = "without threads nothing of this process can work")]
fn runtime() -> &'static Runtime {
    RUNTIME.get_or_init(|| {
        give_back_large_buffers();
        Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("mainstay-store")
            .enable_all()
            .build()
            .expect("threads for the store")
    })
}

/// Makes the allocator map buffers of a MiB and more, and unmap them when they are freed.
///
/// Left alone, glibc learns from the first freed pack to keep all later ones in its heaps, of which every thread has one: memory then grows
/// with the number of threads rather than with what is in use.
#[cfg(target_env = "gnu")]
#[expect(
    unsafe_code,
    reason = "mallopt sets a number in the allocator, under its own lock; there is no safe way to it"
)]
fn give_back_large_buffers() {
    const MAPPED_FROM_BYTES: libc::c_int = 1 << 20;
    // SAFETY: takes two integers, may be called at any time from any thread, and refuses what it does not know.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back_large_buffers() {}

/// Runs a future on the store's runtime, and gives its result. Dropping the returned future stops it.
pub(crate) async fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    struct Stop<T>(tokio::task::JoinHandle<T>);
    impl<T> Drop for Stop<T> {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let mut task = Stop(runtime().spawn(future));
    match (&mut task.0).await {
        Ok(value) => value,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// Runs a future on the store's runtime and blocks this thread until it is done. From any thread; in async code it holds up a worker, so use
/// it in threads made for blocking.
pub fn wait<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let (send, receive) = mpsc::sync_channel(1);
    let task = runtime().spawn(async move {
        let _ = send.send(future.await);
    });
    match receive.recv() {
        Ok(value) => value,
        // The sender was dropped unsent: the future panicked, and so do we, with its message printed already.
        Err(_) => {
            drop(task);
            std::panic::resume_unwind(Box::new("a store's task panicked"))
        }
    }
}

/// Runs what blocks (disks, hashing) on a thread made for it.
pub async fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match runtime().spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work is never cancelled but when the process ends.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Starts a future on the store's runtime, where it goes on whatever becomes of the caller's.
pub fn spawn<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    runtime().spawn(future)
}
