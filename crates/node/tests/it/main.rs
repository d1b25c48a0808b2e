//! Tests of the process as a library, on real databases and real stores. One binary, so that it links once.

mod capture;
mod history;
mod history_builder;
mod readme;
mod restore;
mod resume;
mod verify;
