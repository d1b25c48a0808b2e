//! Tests of the process as a library, on real databases and real stores. One binary, so that it links once.

mod capture;
mod cli;
mod follow;
mod history;
mod history_builder;
mod lease;
mod many;
mod parked;
mod program;
mod readme;
mod restore;
mod resume;
mod verify;
