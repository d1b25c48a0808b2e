//! The one binary. Everything it does lies in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    rhyolite_node::cli::main()
}
