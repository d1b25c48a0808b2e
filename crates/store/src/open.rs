//! From a URL or a path to a backend.
//!
//! | written as | store |
//! |---|---|
//! | `./dir`, `/dir`, `dir`, `file:///dir` | a local folder |
//! | `memory:` | memory of this process, empty at first |
//! | `s3://bucket/prefix` | S3 and what speaks like it |
//! | `gs://bucket/prefix` | Google Cloud Storage |
//! | `az://container/prefix`, `abs://account@container/prefix` | Azure Blob Storage |
//! | `sftp://user@host:port/path` | files on a server that is reached by SFTP; `/~/path` is below the home folder |
//! | `webdav://user@host/path`, `webdavs://user@host/path` | files on a WebDAV server; the second with TLS |
//!
//! Options follow a `?`, as `name=value`, joined by `&`:
//!
//! | option | of | meaning |
//! |---|---|---|
//! | `provider` | S3 | which service it is, if its host does not tell; decides defaults (`docs/user/stores.md`) |
//! | `endpoint` | S3, GCS, Azure | URL of another server; `http://` is allowed if it stands there |
//! | `region` | S3 | default: `AWS_REGION`, `AWS_DEFAULT_REGION`, the profile's, `us-east-1` |
//! | `force-path-style` | S3 | bucket in the path, not in the host name; default: with an endpoint |
//! | `profile` | S3 | named profile of the AWS command line's files (static keys and region) |
//! | `anonymous` | S3, GCS, Azure | do not sign requests |
//! | `part-size` | S3, GCS, Azure | size of a part of a big upload, 5 MiB to 1 GiB; default 8 MiB |
//! | `ca-file`, `skip-verify` | these and WebDAV | trust these certificates too; trust any |
//! | `bulk-delete` | S3 | `false` for servers without `DeleteObjects` |
//! | `unquoted-etags` | S3 | `true` for old Ceph gateways |
//! | `sse-kms-key-id` | S3 | encrypt with this key |
//! | `account` | Azure | the storage account |
//! | `host-key` | SFTP | the server's key, `ssh-ed25519 AAAA...` |
//! | `known-hosts` | SFTP | file with the keys of servers; default `~/.ssh/known_hosts` |
//! | `skip-verify` | SFTP | `true` trusts any server |
//! | `key-path` | SFTP | file with the user's key |
//!
//! Whatever is not understood is an error: an unknown scheme, an unknown option, an option without effect.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cloud::cloud;
#[cfg(feature = "sftp")]
use crate::sftp::sftp;
use crate::url::{StoreUrl, percent_decode};
#[cfg(feature = "webdav")]
use crate::webdav::webdav;
use crate::{Directory, Memory, Operation, Store, StoreError, StoreErrorKind};

/// Where credentials and defaults come from.
#[derive(Clone, Default)]
pub enum Environment {
    /// The environment variables of this process.
    #[default]
    Process,
    /// Just these: for tests, and for settings that were read from a file.
    Fixed(BTreeMap<String, String>),
}

impl Environment {
    /// The value of a variable; empty ones count as absent.
    pub fn get(&self, name: &str) -> Option<String> {
        let value = match self {
            Self::Process => std::env::var(name).ok(),
            Self::Fixed(variables) => variables.get(name).cloned(),
        };
        value.filter(|v| !v.is_empty())
    }
}

impl std::fmt::Debug for Environment {
    /// Names only: values are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process => f.write_str("Process"),
            Self::Fixed(variables) => f.debug_set().entries(variables.keys()).finish(),
        }
    }
}

/// What [`open`] needs beside the URL.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Where credentials and defaults come from.
    pub environment: Environment,
}

/// Opens a store. Makes no request and creates nothing: a wrong bucket or folder shows with the first call.
///
/// The result does not retry and does not count; wrap it in [`crate::Counted`] and [`crate::Retrying`].
pub fn open(url_or_path: &str, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    let refuse =
        |shown: &str, reason: String| Err(StoreError::new(StoreErrorKind::Invalid, Operation::Open, "", shown, reason));
    if url_or_path == "memory:" {
        return Ok(Arc::new(Memory::new()));
    }
    if url_or_path.is_empty() {
        return refuse("a store", "the path is empty".to_owned());
    }
    if let Some((scheme, _)) = url_or_path.split_once(":/").filter(|_| !url_or_path.contains("://")) {
        let is_scheme = scheme.len() > 1 && scheme.bytes().all(|b| b.is_ascii_alphanumeric());
        if is_scheme {
            let meant = url_or_path.replacen(":/", "://", 1);
            return refuse(
                url_or_path,
                format!(
                    "this looks like a URL with a slash too few: {meant}; a folder of that name is ./{url_or_path}"
                ),
            );
        }
    }
    if !url_or_path.contains("://") {
        return Ok(Arc::new(Directory::new(url_or_path)));
    }
    let mut url = StoreUrl::parse(url_or_path)?;
    match url.scheme.as_str() {
        "file" => open_file(&url),
        "s3" | "gs" | "az" | "abs" => {
            let bucket: Arc<dyn Store> = Arc::new(cloud(&mut url, &options.environment)?);
            url.finish()?;
            bucket.sub(&url.path)
        }
        #[cfg(feature = "sftp")]
        "sftp" => Ok(Arc::new(sftp(&mut url, &options.environment)?)),
        #[cfg(feature = "webdav")]
        "webdav" | "webdavs" => Ok(Arc::new(webdav(&mut url, &options.environment)?)),
        #[cfg(not(feature = "sftp"))]
        "sftp" => refuse(&url.shown, "this program was built without SFTP".to_owned()),
        #[cfg(not(feature = "webdav"))]
        "webdav" | "webdavs" => refuse(&url.shown, "this program was built without WebDAV".to_owned()),
        scheme => {
            let known = "a path, or a URL with file:, memory:, s3:, gs:, az:, abs:, sftp:, webdav: or webdavs:";
            refuse(&url.shown, format!("unknown scheme {scheme:?}: a store is {known}"))
        }
    }
}

fn open_file(url: &StoreUrl) -> Result<Arc<dyn Store>, StoreError> {
    url.finish()?;
    let path = url.shown.strip_prefix("file://").filter(|path| path.starts_with('/'));
    let path = path.ok_or_else(|| {
        url.invalid(
            "a file URL has three slashes and an absolute path: file:///var/backups; otherwise write the path alone",
        )
    })?;
    let path = percent_decode(path).ok_or_else(|| url.invalid("the path is badly encoded"))?;
    Ok(Arc::new(Directory::new(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> StoreOptions {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        StoreOptions { environment: Environment::Fixed(variables) }
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S")];

    #[test]
    fn urls_are_understood() {
        let azure = [("AZURE_STORAGE_ACCOUNT", "acc"), ("AZURE_STORAGE_KEY", "a2V5")];
        let litestream = [("LITESTREAM_ACCESS_KEY_ID", "A"), ("LITESTREAM_SECRET_ACCESS_KEY", "S")];
        for (url, variables, shown) in [
            ("./backup", &[][..], "./backup"),
            ("/a b?c", &[], "/a b?c"),
            ("file:///a%20b/c", &[], "/a b/c"),
            ("memory:", &[], "memory:"),
            ("s3://b/app/db", &KEYS, "s3://b/app/db"),
            ("s3://b?region=eu-west-1&endpoint=http://127.0.0.1:9000", &litestream, "s3://b"),
            ("s3://b/x/?endpoint=https%3A%2F%2Fr2.example&force-path-style=false&part-size=16MiB", &KEYS, "s3://b/x"),
            ("gs://b/p?anonymous=true", &[], "gs://b/p"),
            ("az://c/p", &azure, "az://c/p"),
            ("abs://acc@c/p", &azure[1..], "az://c/p"),
            ("s3://b?provider=hetzner&region=fsn1", &KEYS, "s3://b"),
            #[cfg(feature = "sftp")]
            ("sftp://u@h:2222/srv/a%20b/", &[], "sftp://u@h:2222/srv/a%20b"),
            #[cfg(feature = "webdav")]
            ("webdavs://u@h/dav?skip-verify=true", &[], "webdavs://u@h/dav"),
        ] {
            let store = open(url, &options(variables)).unwrap_or_else(|e| panic!("{url}: {e}"));
            assert_eq!(store.describe(), shown);
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_a_reason() {
        for (url, variables, reason) in [
            ("", &[][..], "empty"),
            ("ftp://host/x", &[], "unknown scheme"),
            ("S3://b", &KEYS, "unknown scheme"),
            ("file://relative", &[], "three slashes"),
            ("s3:/bucket/x", &KEYS, "s3://bucket/x"),
            ("file:///x?durable=false", &[], "unknown option \"durable\""),
            ("s3://", &KEYS, "bucket is missing"),
            ("s3:///prefix", &KEYS, "bucket is missing"),
            ("az://?account=a", &[], "container is missing"),
            ("az://c", &[], "account is missing"),
            ("s3://b?endpiont=http://x", &KEYS, "unknown option \"endpiont\""),
            ("s3://b?endpoint=localhost:9000", &KEYS, "does not begin with http"),
            ("s3://b?force-path-style=perhaps", &KEYS, "true or false"),
            ("s3://b?part-size=1MiB", &KEYS, "between"),
            ("s3://b/../x", &KEYS, "not a valid key"),
            ("s3://key:secret@b", &KEYS, "do not belong"),
            ("s3://b", &KEYS[..1], "AWS_SECRET_ACCESS_KEY is not"),
            ("s3://b?profile=nobody", &[("HOME", "/nonexistent")], "no AWS profile \"nobody\""),
            ("s3://b--use1-az4--x-s3", &KEYS, "not supported"),
            ("s3://b?ca-file=/nonexistent", &KEYS, "CA file"),
            ("gs://b?region=x", &[], "unknown option"),
            ("s3://b?provider=nobody", &KEYS, "unknown provider"),
            ("s3://b?provider=wasabi", &KEYS, "needs a region or an endpoint"),
            ("s3://b?provider=minio", &KEYS, "needs an endpoint"),
        ] {
            let error = open(url, &options(variables)).err().unwrap_or_else(|| panic!("{url} was accepted"));
            assert_eq!(error.kind, StoreErrorKind::Invalid, "{url}: {error}");
            assert!(error.reason.contains(reason), "{url}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
