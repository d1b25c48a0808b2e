//! How long each kind of call takes, one after the other, small objects.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Lab;
use crate::{Operation, StoreError, Version};

/// Bytes of the objects: what a quiet second of a small database makes.
const BYTES: usize = 4096;

/// Times of one kind of call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    /// What was asked.
    pub operation: Operation,
    /// Calls that were answered.
    pub samples: usize,
    /// The quickest of them.
    pub min: Duration,
    /// Half of them took no longer.
    pub median: Duration,
    /// The slowest.
    pub max: Duration,
    /// Why there are no more samples.
    pub error: Option<String>,
}

pub(super) async fn measure(lab: &Lab) -> Vec<Latency> {
    let (store, samples) = (lab.client(0), lab.size.samples);
    let bytes = |i: usize| Bytes::from([&i.to_be_bytes()[..], &[b'.'; BYTES - 8]].concat());
    let key = |i: usize| format!("latency/{i:06}");
    let mut version: Option<Version> = None;
    let created = sample(Operation::Create, samples, async |i| {
        version = Some(store.create(&key(i), bytes(i)).await?);
        Ok(())
    })
    .await;
    let last = key(samples - 1);
    let swapped = sample(Operation::Swap, samples, async |i| {
        version = Some(store.swap_if(&last, version.as_ref(), bytes(samples + i)).await?);
        Ok(())
    })
    .await;
    let mut all = vec![created, swapped];
    all.push(sample(Operation::Get, samples, async |i| store.get(&key(i)).await.map(drop)).await);
    all.push(sample(Operation::GetRange, samples, async |i| store.get_range(&key(i), 8..1032).await.map(drop)).await);
    all.push(sample(Operation::Head, samples, async |i| store.head(&key(i)).await.map(drop)).await);
    all.push(sample(Operation::List, samples, async |_| store.list_after("latency", None, 10).await.map(drop)).await);
    all.push(sample(Operation::Delete, samples, async |i| store.delete(&[key(i)]).await).await);
    all
}

/// Calls until one fails.
async fn sample(
    operation: Operation,
    samples: usize,
    mut call: impl AsyncFnMut(usize) -> Result<(), StoreError>,
) -> Latency {
    let (mut times, mut error) = (Vec::new(), None);
    for i in 0..samples {
        let start = Instant::now();
        match call(i).await {
            Ok(()) => times.push(start.elapsed()),
            Err(e) => {
                error = Some(e.reason);
                break;
            }
        }
    }
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    let (median, max) = (at(times.len() / 2), at(times.len().saturating_sub(1)));
    Latency { operation, samples: times.len(), min: at(0), median, max, error }
}
