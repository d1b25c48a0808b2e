//! A world from a seed, in which the code of `writer` and `logic` runs that keeps two writers apart and a history whole.
//!
//! Two or three nodes want to write to one store. Each runs what a process runs: it keeps a lease, finds the end of the log, claims the manifest, creates
//! segments, bundles, merges, deletes. Around it nothing is real: time jumps from timer to timer ([`executor`]), the network loses, delays and
//! doubles ([`store`]), machines crash and freeze, clocks drift and jump ([`director`]), disks lose what was not synced ([`disk`]). After
//! each change of the store [`model`] looks whether everything still holds that must.
//!
//! In a second kind of world the nodes form a [`cluster`]: the role machine decides who runs the application, and replicas follow.
//!
//! One seed gives one run, to the byte of its trace. A rule that can be switched off ([`rhyolite_logic::lease::Guards`]) is switched off in a test, and
//! then this finds what it is there for.

pub mod cluster;
pub mod director;
pub mod disk;
pub mod executor;
pub mod model;
pub mod node;
pub mod objects;
pub mod random;
pub mod rules;
pub mod run;
pub mod scenario;
pub mod session;
pub mod sim;
pub mod store;
pub mod upkeep;

pub use run::{Report, run};
pub use scenario::Scenario;
