//! Every backend and every decorator against the one conformance suite, and the decorators' own promises.

mod conformance;
mod decorators;
mod probe;
mod processes;
mod proxy;
mod remote;
mod servers;
mod several;
#[cfg(feature = "sftp")]
mod sftp;
#[cfg(feature = "webdav")]
mod webdav;
