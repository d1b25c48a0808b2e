//! A store that misbehaves on purpose: by script (this call, that fault) or at random from a seed.

use std::collections::VecDeque;
use std::future::pending;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use crate::types::{Entry, MadeAt, Meta, Object, Version};
use crate::{Capabilities, Operation, Store, StoreError, StoreErrorKind, Upload};

/// What goes wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The store says that it is unavailable; nothing happens.
    Refuse,
    /// The store refuses the credentials; nothing happens.
    Deny,
    /// The store is full; nothing happens. Writes only.
    Full,
    /// No answer, ever; nothing happens.
    Hang,
    /// The call happens, after a while.
    Delay(Duration),
    /// The call happens, but the connection breaks before the answer.
    LoseReply,
    /// The call happens, but no answer comes, ever.
    HangAfter,
    /// A write is answered with success, but nothing is stored. Writes only.
    PretendStored,
    /// A create or swap is answered with "exists" or "conflict", but nothing stands in its way. Conditional writes only.
    PretendRefused,
    /// Only the first bytes of the answer come, as many as given. Reads only.
    CutBody(usize),
    /// The lowest bit of the byte at this offset of the answer (modulo its length) is wrong. Reads only.
    FlipByte(usize),
    /// A list lacks the objects that were created last through this decorator, as many as given. Lists only.
    StaleList(usize),
}

impl Fault {
    fn applies_to(self, operation: Operation) -> bool {
        use Operation as O;
        match self {
            Self::Refuse | Self::Deny | Self::Hang | Self::Delay(_) | Self::LoseReply | Self::HangAfter => true,
            Self::Full => matches!(operation, O::Create | O::Swap | O::Upload),
            Self::PretendStored => matches!(operation, O::Create | O::Swap | O::Upload | O::Delete),
            Self::PretendRefused => matches!(operation, O::Create | O::Swap),
            Self::CutBody(_) | Self::FlipByte(_) => matches!(operation, O::Get | O::GetRange | O::GetTail),
            Self::StaleList(_) => operation == O::List,
        }
    }
}

/// Which calls go wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Calls of this operation; of any if `None`. Start, each write and the end of an upload are one call each.
    pub operation: Option<Operation>,
    /// Calls whose key (or prefix) contains this.
    pub key_contains: String,
    /// Let this many matching calls pass first.
    pub skip: u64,
    /// Then spoil this many; `u64::MAX` for all.
    pub times: u64,
    /// How.
    pub fault: Fault,
}

impl Rule {
    /// Spoils the next `times` calls of `operation`.
    pub fn next(operation: Operation, times: u64, fault: Fault) -> Self {
        Self { operation: Some(operation), key_contains: String::new(), skip: 0, times, fault }
    }

    /// Spoils all calls to which the fault applies.
    pub fn always(fault: Fault) -> Self {
        Self { operation: None, key_contains: String::new(), skip: 0, times: u64::MAX, fault }
    }

    fn matches(&self, operation: Operation, key: &str) -> bool {
        self.operation.is_none_or(|o| o == operation)
            && key.contains(&self.key_contains)
            && self.fault.applies_to(operation)
    }
}

/// A fault and how many of 10,000 calls suffer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// What goes wrong.
    pub fault: Fault,
    /// Of 10,000 calls, those it is drawn for; without effect on calls to which it does not apply.
    pub per_10_000: u32,
}

/// A store that misbehaves. Without rules and rates it is transparent.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Store>,
    plan: Arc<Plan>,
}

#[derive(Debug)]
struct Plan {
    state: Mutex<State>,
    injected: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    rates: Vec<Rate>,
    random: u64,
    /// Keys created last, newest at the end.
    created: VecDeque<String>,
}

/// How many created keys are remembered for [`Fault::StaleList`].
const CREATED_MAX: usize = 1000;

impl Faulty {
    /// Transparent until it is given rules.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self::seeded(inner, 0, Vec::new())
    }

    /// Faults at random; the same calls with the same seed suffer the same faults.
    pub fn seeded(inner: Arc<dyn Store>, seed: u64, rates: Vec<Rate>) -> Self {
        let state = State { rates, random: seed, ..State::default() };
        Self { inner, plan: Arc::new(Plan { state: Mutex::new(state), injected: AtomicU64::new(0) }) }
    }

    /// Adds a rule. The first matching rule decides; rules come before rates.
    pub fn script(&self, rule: Rule) {
        self.plan.lock().rules.push(rule);
    }

    /// Forgets all rules and rates: the store is well again.
    pub fn heal(&self) {
        let mut state = self.plan.lock();
        state.rules.clear();
        state.rates.clear();
    }

    /// Calls that were spoilt so far.
    pub fn injected(&self) -> u64 {
        self.plan.injected.load(Ordering::Relaxed)
    }

    fn fail(&self, kind: StoreErrorKind, operation: Operation, key: &str, reason: &str) -> StoreError {
        StoreError::new(kind, operation, key, self.describe(), reason)
    }

    /// Runs a call that suffers what the plan has for it; gives the fault on, for what must happen to its result.
    async fn call<T>(
        &self,
        operation: Operation,
        key: &str,
        pretence: Option<T>,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> (Option<Fault>, Result<T, StoreError>) {
        let fault = self.plan.draw(operation, key);
        let result = self.suffer(fault, operation, key, pretence, call).await;
        (fault, result)
    }

    async fn suffer<T>(
        &self,
        fault: Option<Fault>,
        operation: Operation,
        key: &str,
        pretence: Option<T>,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let fail = |kind, reason| Err(self.fail(kind, operation, key, reason));
        let is_write = matches!(operation, Operation::Create | Operation::Swap | Operation::Upload);
        match fault {
            Some(Fault::Refuse) => fail(StoreErrorKind::Unavailable, "service unavailable (injected)"),
            Some(Fault::Deny) => fail(StoreErrorKind::Denied, "access denied (injected)"),
            Some(Fault::Full) => fail(StoreErrorKind::Full, "no space left (injected)"),
            Some(Fault::Hang) => pending().await,
            Some(Fault::PretendRefused) if operation == Operation::Create => {
                fail(StoreErrorKind::Exists, "the object exists already (injected)")
            }
            Some(Fault::PretendRefused) => fail(StoreErrorKind::Conflict, "not the expected version (injected)"),
            Some(Fault::PretendStored) if pretence.is_some() => Ok(pretence.expect("just looked")),
            Some(Fault::Delay(pause)) => {
                tokio::time::sleep(pause).await;
                call.await
            }
            Some(Fault::HangAfter) => {
                let _ = call.await;
                pending().await
            }
            Some(Fault::LoseReply) => {
                let _ = call.await;
                let kind = if is_write { StoreErrorKind::Ambiguous } else { StoreErrorKind::Unavailable };
                fail(kind, "connection closed before the answer (injected)")
            }
            None | Some(Fault::PretendStored | Fault::CutBody(_) | Fault::FlipByte(_) | Fault::StaleList(_)) => {
                call.await
            }
        }
    }

    fn pretended(&self) -> Option<Version> {
        Some(Version::new("pretended"))
    }
}

impl Plan {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// The fault for this call, if any.
    fn draw(&self, operation: Operation, key: &str) -> Option<Fault> {
        let fault = self.lock().draw(operation, key)?;
        self.injected.fetch_add(1, Ordering::Relaxed);
        Some(fault)
    }

    fn note_created(&self, key: &str) {
        let mut state = self.lock();
        if state.created.len() == CREATED_MAX {
            state.created.pop_front();
        }
        state.created.push_back(key.to_owned());
    }

    fn hide_created(&self, count: usize, entries: &mut Vec<Entry>) {
        let state = self.lock();
        let hidden: Vec<_> = state.created.iter().rev().take(count).collect();
        entries.retain(|e| !hidden.contains(&&e.key));
    }
}

impl State {
    fn draw(&mut self, operation: Operation, key: &str) -> Option<Fault> {
        // Drawn for every call, so that a script does not shift the random faults.
        let roll = (splitmix(&mut self.random) % 10_000) as u32;
        for rule in self.rules.iter_mut().filter(|r| r.matches(operation, key)) {
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.times > 0 {
                rule.times -= u64::from(rule.times != u64::MAX);
                return Some(rule.fault);
            }
        }
        let mut below = 0;
        for rate in &self.rates {
            below += rate.per_10_000;
            if roll < below {
                return Some(rate.fault).filter(|f| f.applies_to(operation));
            }
        }
        None
    }
}

/// Vigna's splitmix64: 64 good bits from a counter, the same everywhere.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn spoil(fault: Option<Fault>, bytes: &mut Bytes) {
    match fault {
        Some(Fault::CutBody(keep)) => bytes.truncate(keep),
        Some(Fault::FlipByte(at)) if !bytes.is_empty() => {
            let mut copy = BytesMut::from(&bytes[..]);
            let at = at % copy.len();
            copy[at] ^= 1;
            *bytes = copy.freeze();
        }
        _ => {}
    }
}

#[async_trait]
impl Store for Faulty {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        let (fault, result) = self.call(Operation::Get, key, None, self.inner.get(key)).await;
        let mut object = result?;
        spoil(fault, &mut object.bytes);
        Ok(object)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (fault, result) = self.call(Operation::GetRange, key, None, self.inner.get_range(key, range)).await;
        let mut bytes = result?;
        spoil(fault, &mut bytes);
        Ok(bytes)
    }

    async fn get_tail(&self, key: &str, len: u64) -> Result<Object, StoreError> {
        let (fault, result) = self.call(Operation::GetTail, key, None, self.inner.get_tail(key, len)).await;
        let mut object = result?;
        spoil(fault, &mut object.bytes);
        Ok(object)
    }

    async fn head(&self, key: &str) -> Result<Meta, StoreError> {
        self.call(Operation::Head, key, None, self.inner.head(key)).await.1
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        let call = self.inner.create(key, bytes);
        let (_, result) = self.call(Operation::Create, key, self.pretended(), call).await;
        if result.is_ok() {
            self.plan.note_created(key);
        }
        result
    }

    async fn swap_if(&self, key: &str, expected: Option<&Version>, bytes: Bytes) -> Result<Version, StoreError> {
        let call = self.inner.swap_if(key, expected, bytes);
        self.call(Operation::Swap, key, self.pretended(), call).await.1
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        let inner = self.call(Operation::Upload, key, None, self.inner.upload(key)).await.1?;
        let store = Self { inner: Arc::clone(&self.inner), plan: Arc::clone(&self.plan) };
        Ok(Box::new(FaultyUpload { store, key: key.to_owned(), inner }))
    }

    async fn upload_dated(&self, key: &str, made: &MadeAt) -> Result<Box<dyn Upload>, StoreError> {
        let inner = self.call(Operation::Upload, key, None, self.inner.upload_dated(key, made)).await.1?;
        let store = Self { inner: Arc::clone(&self.inner), plan: Arc::clone(&self.plan) };
        Ok(Box::new(FaultyUpload { store, key: key.to_owned(), inner }))
    }

    async fn list_after(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let call = self.inner.list_after(prefix, after, limit);
        let (fault, result) = self.call(Operation::List, prefix, None, call).await;
        let mut entries = result?;
        if let Some(Fault::StaleList(count)) = fault {
            self.plan.hide_created(count, &mut entries);
        }
        Ok(entries)
    }

    async fn remove_folder(&self, prefix: &str) -> Result<(), StoreError> {
        self.inner.remove_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let first = keys.first().map_or("", String::as_str);
        self.call(Operation::Delete, first, Some(()), self.inner.delete(keys)).await.1
    }
}

#[derive(Debug)]
struct FaultyUpload {
    store: Faulty,
    key: String,
    inner: Box<dyn Upload>,
}

#[async_trait]
impl Upload for FaultyUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.store.call(Operation::Upload, &self.key, Some(()), self.inner.write(bytes)).await.1
    }

    async fn finish(self: Box<Self>) -> Result<Version, StoreError> {
        let Self { store, key, inner } = *self;
        store.call(Operation::Upload, &key, store.pretended(), inner.finish()).await.1
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        let Self { store, key, inner } = *self;
        store.call(Operation::Upload, &key, Some(()), inner.abort()).await.1
    }
}
