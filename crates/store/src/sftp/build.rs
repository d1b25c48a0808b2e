//! From `sftp://user@host:port/path` and the environment to a store.
//!
//! The path is absolute; `/~/path` begins where the server puts the user, which is mostly the home folder.

use std::path::PathBuf;

use russh::keys::{PublicKey, ssh_key::Algorithm};

use super::Sftp;
use super::connect::{HostKey, Target};
use crate::key::check_key;
use crate::url::{StoreUrl, percent_decode};
use crate::{Environment, Operation, StoreError};

const PORT: u16 = 22;

/// The store at the URL's path.
pub(crate) fn sftp(url: &mut StoreUrl, environment: &Environment) -> Result<Sftp, StoreError> {
    if url.had_password {
        return Err(url.invalid("a password does not belong into the URL: put it into SFTP_PASSWORD"));
    }
    let (host, port) = address(url)?;
    let user = url.user.clone().or_else(|| environment.get("SFTP_USER")).or_else(|| environment.get("USER"));
    let user = user.ok_or_else(|| url.invalid("the user is missing: sftp://USER@HOST/path"))?;
    let home = PathBuf::from(environment.get("HOME").unwrap_or_default());
    let key_path = url.take(&["key-path"]).or_else(|| environment.get("SFTP_KEY_PATH")).map(|p| expand(&p, &home));
    let host_key = host_key(url, environment, &home)?;
    url.finish()?;
    let path = percent_decode(&url.path).ok_or_else(|| url.invalid("the path is badly encoded"))?;
    let (start, rest) = match path.strip_prefix("~/") {
        Some(rest) => ("", rest),
        None if path == "~" => ("", ""),
        None => ("/", path.as_str()),
    };
    if !rest.is_empty() {
        check_key(Operation::Open, rest, &|| url.shown.clone())?;
    }
    let root = if rest.is_empty() { start.to_owned() } else { format!("{start}{rest}/") };
    let target = Target {
        host,
        port,
        user,
        host_key,
        key_path,
        key_passphrase: environment.get("SFTP_KEY_PASSPHRASE"),
        password: environment.get("SFTP_PASSWORD"),
        agent: environment.get("SSH_AUTH_SOCK").map(PathBuf::from),
        home,
    };
    Ok(Sftp::new(target, root, url.shown.trim_end_matches('/').to_owned()))
}

/// `host`, `host:port`, `[::1]:port`.
fn address(url: &StoreUrl) -> Result<(String, u16), StoreError> {
    let text = url.host.as_str();
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or((rest, ""), |(host, port)| (host, port.trim_start_matches(':'))),
        None => text.rsplit_once(':').unwrap_or((text, "")),
    };
    let port = if port.is_empty() { Some(PORT) } else { port.parse().ok().filter(|p| *p > 0) };
    match (host, port) {
        ("", _) => Err(url.invalid("the server is missing: sftp://USER@HOST/path")),
        (_, None) => Err(url.invalid("the port is no number between 1 and 65535")),
        (host, Some(port)) => Ok((host.to_owned(), port)),
    }
}

fn expand(path: &str, home: &std::path::Path) -> PathBuf {
    path.strip_prefix("~/").map_or_else(|| PathBuf::from(path), |rest| home.join(rest))
}

fn host_key(url: &mut StoreUrl, environment: &Environment, home: &std::path::Path) -> Result<HostKey, StoreError> {
    let given = url.take(&["host-key"]).or_else(|| environment.get("SFTP_HOST_KEY"));
    let known_hosts = url.take(&["known-hosts"]);
    let trusts_any = url.take_flag(&["skip-verify"])?.unwrap_or(false);
    match (given, known_hosts, trusts_any) {
        (None, None, true) => Ok(HostKey::Any),
        (Some(text), None, false) => {
            // As in a known hosts file after the name, or as in a .pub file.
            let key = PublicKey::from_openssh(text.trim());
            let key = key.map_err(|e| url.invalid(format!("host-key is not like \"ssh-ed25519 AAAA...\": {e}")))?;
            if matches!(key.algorithm(), Algorithm::Rsa { .. } | Algorithm::Dsa) {
                return Err(url.invalid(
                    "host-key is an RSA key, which is not supported: give the server's Ed25519 or ECDSA key",
                ));
            }
            Ok(HostKey::Is(Box::new(key)))
        }
        (None, path, false) => {
            let default = || home.join(".ssh/known_hosts");
            Ok(HostKey::In(path.map_or_else(default, |p| expand(&p, home))))
        }
        _ => Err(url.invalid("host-key, known-hosts and skip-verify exclude each other")),
    }
}
