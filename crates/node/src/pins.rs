//! Pins: positions with a name that retention never takes away.
//!
//! A pin is entered into the very manifest under which its position was found to be restorable: when somebody else changes the manifest
//! in between, the position is looked for again. Whoever plans what to merge or to expire finds the pin there, and what was
//! planned before it is thrown away (`history`).

use std::sync::Arc;

use rhyolite_format::manifest::{FileKind, Manifest, PIN_NAME_SIZE_MAX, PINS_MAX, Pin};
use rhyolite_format::{Pos, Timestamp, Txid};
use rhyolite_logic::Target;
use rhyolite_logic::restore_plan::points;
use rhyolite_store::Store;

use crate::manifest_swap::{self, ManifestError};
use crate::restore::catalog::{Catalog, OnDamage};
use crate::restore::reader::Reader;
use crate::restore::{RestoreError, plan_in};

/// How often the position is looked for while the manifest changes.
const TRIES_MAX: u32 = 8;

/// Why a pin could not be set, removed or found.
#[derive(Debug)]
pub enum PinError {
    /// The name is empty, too long, or holds control characters.
    Name,
    /// The name is taken by another position.
    Taken(Pin),
    /// There is no pin of this name.
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// There are as many pins as there may be.
    TooMany,
    /// The position cannot be restored, or the store does not answer.
    Read(RestoreError),
    /// The manifest could not be changed.
    Manifest(ManifestError),
}

impl std::fmt::Display for PinError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name => write!(f, "a pin needs a name of 1 to {PIN_NAME_SIZE_MAX} bytes without control characters"),
            Self::Taken(pin) => {
                write!(
                    f,
                    "pin {:?} holds TXID {} already: remove it first, or take another name",
                    pin.name, pin.pos.txid
                )
            }
            Self::Unknown { name, known } if known.is_empty() => write!(f, "there is no pin {name:?}, nor any other"),
            Self::Unknown { name, known } => write!(f, "there is no pin {name:?}; there are {}", known.join(", ")),
            Self::TooMany => write!(f, "there are {PINS_MAX} pins already"),
            Self::Read(e) => e.fmt(f),
            Self::Manifest(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for PinError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read(e) => Some(e),
            Self::Manifest(e) => Some(e),
            Self::Name | Self::Taken(_) | Self::Unknown { .. } | Self::TooMany => None,
        }
    }
}

impl From<RestoreError> for PinError {
    fn from(error: RestoreError) -> Self {
        Self::Read(error)
    }
}

impl From<ManifestError> for PinError {
    fn from(error: ManifestError) -> Self {
        Self::Manifest(error)
    }
}

/// A pin and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Name and position.
    pub pin: Pin,
    /// When that position was committed; `None` when it cannot be restored, which is damage.
    pub time: Option<Timestamp>,
}

/// Gives a position a name. A pin of this name at the same position is left as it is. Must run in a Tokio runtime.
///
/// # Errors
/// The position cannot be restored, the name is taken, or the store does not do it.
pub async fn add(store: Arc<dyn Store>, name: &str, target: Target) -> Result<Pinned, PinError> {
    if name.is_empty() || name.len() > PIN_NAME_SIZE_MAX || name.chars().any(char::is_control) {
        return Err(PinError::Name);
    }
    let reader = Arc::new(Reader::new(Arc::clone(&store)));
    for _ in 0..TRIES_MAX {
        let catalog = Catalog::load(&reader, None, OnDamage::Refuse).await?;
        let plan = plan_in(&reader, &catalog, &mut Vec::new(), target).await?;
        let pinned = Pinned { pin: Pin { name: name.to_owned(), pos: plan.pos }, time: Some(plan.time) };
        let pins = &catalog.manifest.pins;
        match pins.iter().find(|pin| pin.name == name) {
            Some(pin) if pin.pos == plan.pos => return Ok(pinned),
            Some(pin) => return Err(PinError::Taken(pin.clone())),
            None if pins.len() == PINS_MAX => return Err(PinError::TooMany),
            None => {}
        }
        let seen = (catalog.manifest.revision, catalog.manifest.nonce);
        let change = |manifest: Option<Manifest>| {
            let mut manifest = manifest.filter(|manifest| (manifest.revision, manifest.nonce) == seen)?;
            manifest.pins.push(pinned.pin.clone());
            manifest.pins.sort_by(|a, b| a.name.cmp(&b.name));
            Some(manifest)
        };
        if manifest_swap::update(&*store, change).await?.is_some() {
            return Ok(pinned);
        }
    }
    Err(ManifestError::Contended.into())
}

/// Takes a pin away. What it held is kept as long as the retention rules say.
///
/// # Errors
/// There is no such pin, or the store does not do it.
pub async fn remove(store: &dyn Store, name: &str) -> Result<Pin, PinError> {
    let pin = find(store, name).await?;
    let change = |manifest: Option<Manifest>| {
        let mut manifest = manifest?;
        manifest.pins.retain(|other| *other != pin);
        Some(manifest)
    };
    manifest_swap::update(store, change).await?;
    Ok(pin)
}

/// The pin of this name.
///
/// # Errors
/// There is no such pin, or the store does not answer.
pub async fn find(store: &dyn Store, name: &str) -> Result<Pin, PinError> {
    let pins = manifest_swap::read(store).await?.map(|(manifest, _)| manifest.pins).unwrap_or_default();
    let known = || pins.iter().map(|pin| pin.name.clone()).collect();
    let found = pins.iter().find(|pin| pin.name == name).cloned();
    found.ok_or_else(|| PinError::Unknown { name: name.to_owned(), known: known() })
}

/// Every pin, by name. Must run in a Tokio runtime.
///
/// # Errors
/// The store does not answer, or what it answers is damaged.
pub async fn list(store: Arc<dyn Store>) -> Result<Vec<Pinned>, PinError> {
    let reader = Arc::new(Reader::new(store));
    let catalog = Catalog::load(&reader, None, OnDamage::Refuse).await?;
    let pins = &catalog.manifest.pins;
    let holds = |min: Txid, max: Txid| pins.iter().any(|pin| min <= pin.pos.txid && pin.pos.txid <= max);
    let mut indexes = Vec::new();
    for file in catalog.manifest.files.iter().filter(|file| file.kind == FileKind::Bundle) {
        if holds(file.min_txid, file.max_txid) {
            indexes.push(catalog.bundle_index(&reader, &file.key).await?);
        }
    }
    let points = points(&catalog.manifest, &catalog.log, &indexes).expect("the catalog has no holes");
    let time = |pos: Pos| points.iter().find(|point| point.pos == pos).map(|point| point.time);
    Ok(pins.iter().map(|pin| Pinned { pin: pin.clone(), time: time(pin.pos) }).collect())
}
