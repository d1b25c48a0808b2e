//! Every backend and every decorator against the one conformance suite, and the decorators' own promises.

mod conformance;
mod decorators;
mod processes;
mod proxy;
mod remote;
mod servers;
