//! Races: the same call by several clients at once. What stands there afterwards says who has won.

use std::future::Future;
use std::sync::Arc;

use super::checks::{ensure, text};
use super::{Lab, Seen, said};
use crate::{Store, StoreError, StoreErrorKind as Kind, Version};

/// How often a writer may be refused or left without a clear answer before it gives up adding.
const ADD_TRIES_MAX: usize = 1000;

/// Tasks that add.
const ADDERS: usize = 4;

/// How the race of one round ended.
#[derive(Debug, Default)]
struct Finish {
    /// Who was told that it had won.
    winners: Vec<usize>,
    /// Who was not told anything clear.
    open: Vec<usize>,
}

/// Runs the calls on tasks of their own. `lost` is the answer to a racer that came too late.
async fn race<F>(calls: Vec<F>, lost: Kind) -> Result<Finish, String>
where
    F: Future<Output = Result<Version, StoreError>> + Send + 'static,
{
    let tasks: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
    let mut finish = Finish::default();
    for (racer, task) in tasks.into_iter().enumerate() {
        match task.await.map_err(|e| e.to_string())? {
            Ok(_) => finish.winners.push(racer),
            Err(e) if e.kind == lost => {}
            Err(e) if e.is_ambiguous() || e.is_unavailable() => finish.open.push(racer),
            Err(e) => return Err(format!("a racer failed otherwise than by losing: {}", e.reason)),
        }
    }
    Ok(finish)
}

/// Compares what was answered with what stands there. The version that won; `None` if nobody has.
async fn settle(
    store: &Arc<dyn Store>,
    key: &str,
    finish: &Finish,
    written: impl Fn(usize) -> bytes::Bytes,
) -> Result<Option<Version>, String> {
    ensure!(finish.winners.len() <= 1, "{} racers were told that they had won", finish.winners.len());
    let object = match store.get(key).await {
        Ok(object) => object,
        Err(e) if e.kind == Kind::NotFound && finish.winners.is_empty() => return Ok(None),
        Err(e) => return Err(format!("read the winner: {}", e.reason)),
    };
    if let Some(&winner) = finish.winners.first() {
        ensure!(object.bytes == written(winner), "one racer was told that it had won, another's object stands there");
        return Ok(Some(object.version));
    }
    let won = finish.open.iter().any(|&racer| object.bytes == written(racer));
    Ok(won.then_some(object.version))
}

pub(super) async fn creates(lab: Lab) -> Seen {
    let mut decided = 0;
    for round in 0..lab.size.rounds {
        let key = format!("race/{round:04}");
        let written = move |racer: usize| text(format!("round {round} racer {racer}"));
        let calls = (0..lab.size.racers).map(|racer| {
            let (store, key) = (Arc::clone(lab.client(racer)), key.clone());
            async move { store.create(&key, written(racer)).await }
        });
        let finish = race(calls.collect(), Kind::Exists).await?;
        decided += usize::from(settle(lab.client(round), &key, &finish, written).await?.is_some());
    }
    verdict(decided, &lab)
}

pub(super) async fn swaps(lab: Lab) -> Seen {
    let mut version = said("create", lab.client(0).create("swap-race", text("start")).await)?;
    let mut decided = 0;
    for round in 0..lab.size.rounds {
        let written = move |racer: usize| text(format!("round {round} racer {racer}"));
        let calls = (0..lab.size.racers).map(|racer| {
            let (store, expected) = (Arc::clone(lab.client(racer)), version.clone());
            async move { store.swap_if("swap-race", Some(&expected), written(racer)).await }
        });
        let finish = race(calls.collect(), Kind::Conflict).await?;
        if let Some(next) = settle(lab.client(round), "swap-race", &finish, written).await? {
            ensure!(next != version, "a swap left the version as it was");
            version = next;
            decided += 1;
        }
    }
    verdict(decided, &lab)
}

fn verdict(decided: usize, lab: &Lab) -> Seen {
    let (rounds, racers) = (lab.size.rounds, lab.size.racers);
    // Rounds that nobody wins are allowed (S3 may refuse all of two that meet), a store where nobody ever wins is not.
    ensure!(decided * 2 > rounds, "in {} of {rounds} rounds of {racers} racers nobody won", rounds - decided);
    Ok(format!("one winner in each of {decided} rounds of {racers} racers over {} clients", lab.clients.len()))
}

/// Several tasks add one, each again and again: no addition may be lost. The object holds the additions of each, so a writer that got no
/// clear answer finds out by reading whether its last one counts.
pub(super) async fn sum(lab: Lab) -> Seen {
    said("create", lab.client(0).create("sum", sums(&[0; ADDERS], 0)).await)?;
    let adds = lab.size.rounds;
    let tasks = (0..ADDERS).map(|adder| tokio::spawn(add(Arc::clone(lab.client(adder)), adder, adds)));
    for task in tasks.collect::<Vec<_>>() {
        task.await.map_err(|e| e.to_string())??;
    }
    let object = said("read", lab.client(0).get("sum").await)?;
    let (sum, wanted) = (read_sums(&object.bytes)?.iter().sum::<usize>(), ADDERS * adds);
    ensure!(sum == wanted, "{wanted} additions came to {sum}");
    Ok(format!("{wanted} additions by {ADDERS} writers, none lost"))
}

/// One number per writer, and one that makes the bytes differ.
fn sums(each: &[usize; ADDERS], nonce: u64) -> bytes::Bytes {
    let words: Vec<_> = each.iter().map(ToString::to_string).collect();
    text(format!("{} {nonce:016x}", words.join(" ")))
}

fn read_sums(bytes: &[u8]) -> Result<[usize; ADDERS], String> {
    let numbers =
        std::str::from_utf8(bytes).ok().map(|t| t.split(' ').map_while(|n| n.parse().ok()).take(ADDERS).collect());
    let numbers: Option<Vec<usize>> = numbers;
    numbers.and_then(|n| n.try_into().ok()).ok_or_else(|| "the sums are no numbers".to_owned())
}

async fn add(store: Arc<dyn Store>, adder: usize, adds: usize) -> Result<(), String> {
    let (mut done, mut is_open) = (0, false);
    for _ in 0..ADD_TRIES_MAX {
        let object = said("read", store.get("sum").await)?;
        let mut each = read_sums(&object.bytes)?;
        if std::mem::take(&mut is_open) {
            ensure!(each[adder] == done || each[adder] == done + 1, "a writer has {} of {done} additions", each[adder]);
            done = each[adder];
        }
        ensure!(each[adder] == done, "a writer's additions came to {}, not {done}", each[adder]);
        if done == adds {
            return Ok(());
        }
        each[adder] += 1;
        let next = sums(&each, getrandom::u64().unwrap_or_default());
        match store.swap_if("sum", Some(&object.version), next).await {
            Ok(_) => done += 1,
            Err(e) if e.kind == Kind::Conflict => {}
            Err(e) if e.is_ambiguous() || e.is_unavailable() => is_open = true,
            Err(e) => return Err(format!("swap: {}", e.reason)),
        }
    }
    Err(format!("a writer was refused {ADD_TRIES_MAX} times"))
}
