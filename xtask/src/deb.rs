//! `cargo xtask deb`: a Debian package of the released program, its manual, its completions and its systemd unit.
//!
//! Made with `dpkg-deb` from a folder that looks as the files will lie. `--bin PATH` packs a program that is there already.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::args::Args;
use crate::ci::root;
use crate::error::{Context, Outcome, fail};
use crate::scratch::Scratch;

/// What the package depends on: the C library that the program is linked with.
const DEPENDS: &str = "libc6 (>= 2.34), ca-certificates";

/// Builds, packs, and says where the package is.
pub(crate) fn run(mut args: Args) -> Outcome {
    let binary: Option<PathBuf> = args.option("--bin")?;
    let out: PathBuf = args.option_or("--out", root().join("target/debian"))?;
    args.finish()?;
    let binary = match binary {
        Some(binary) => binary,
        None => build()?,
    };
    let scratch = Scratch::new("deb")?;
    let package = scratch.path().join("rhyolite");
    fill(&package, &binary)?;
    fs::create_dir_all(&out).context("make the output folder")?;
    let file = out.join(format!("rhyolite_{}_{}.deb", env!("CARGO_PKG_VERSION"), architecture()?));
    let built = Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&package).arg(&file).output();
    let built = built.context("run dpkg-deb")?;
    if !built.status.success() {
        return fail(format!("dpkg-deb: {}", String::from_utf8_lossy(&built.stderr).trim()));
    }
    println!("{}", file.display());
    Ok(())
}

fn build() -> Outcome<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--locked", "--package", "rhyolite-node"]).current_dir(root());
    if !cargo.status().context("start cargo")?.success() {
        return fail("the release build failed");
    }
    Ok(root().join("target/release/rhyolite"))
}

fn architecture() -> Outcome<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => fail(format!("no Debian architecture is known for {other}")),
    }
}

/// Every file at its place.
fn fill(package: &Path, binary: &Path) -> Outcome {
    let copy = |from: &Path, to: &str, mode: u32| -> Outcome {
        let to = package.join(to);
        fs::create_dir_all(to.parent().expect("files lie in folders")).context("make a folder")?;
        fs::copy(from, &to).context(format!("copy {}", from.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).context("set permissions")
    };
    let root = root();
    copy(binary, "usr/bin/rhyolite", 0o755)?;
    copy(&root.join("deploy/systemd/rhyolite.service"), "lib/systemd/system/rhyolite.service", 0o644)?;
    copy(&root.join("LICENSE"), "usr/share/doc/rhyolite/copyright", 0o644)?;
    copy(&root.join("CHANGELOG.md"), "usr/share/doc/rhyolite/changelog", 0o644)?;
    let program = package.join("usr/bin/rhyolite");
    let manual = package.join("usr/share/man/man1");
    fs::create_dir_all(&manual).context("make a folder")?;
    output(Command::new(&program).args(["man", "--dir"]).arg(&manual))?;
    let completions = package.join("usr/share/bash-completion/completions");
    fs::create_dir_all(&completions).context("make a folder")?;
    let script = output(Command::new(&program).args(["completions", "bash"]))?;
    fs::write(completions.join("rhyolite"), script).context("write the completions")?;
    for folder in [manual, package.join("usr/share/doc/rhyolite")] {
        for entry in fs::read_dir(&folder).context("read a folder")? {
            let path = entry.context("read a folder")?.path();
            if path.file_name().is_some_and(|name| name != "copyright") {
                output(Command::new("gzip").args(["-9", "--no-name"]).arg(&path))?;
            }
        }
    }
    fs::create_dir_all(package.join("DEBIAN")).context("make a folder")?;
    fs::write(package.join("DEBIAN/control"), control()?).context("write the control file")
}

fn output(command: &mut Command) -> Outcome<Vec<u8>> {
    let output = command.output().context("start a command")?;
    if !output.status.success() {
        return fail(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(output.stdout)
}

fn control() -> Outcome<String> {
    Ok(format!(
        "Package: rhyolite\nVersion: {}\nArchitecture: {}\nMaintainer: Rhyolite <packages@rhyolite.invalid>\nDepends: {DEPENDS}\n\
         Section: database\nPriority: optional\nDescription: replication of live SQLite databases to object storage\n \
         Every commit of an ordinary SQLite database becomes a restore point in object\n storage or a folder, and every restore is proved \
         by checksum.\n",
        env!("CARGO_PKG_VERSION"),
        architecture()?
    ))
}
