//! Places for the lease of a cluster outside of its store: services that keep one record under compare-and-swap, and none at all.
//!
//! The machine that takes and renews the lease is the one for the store (`logic::lease`); only the place differs. Nothing of what these services
//! know of sessions and times to live is used: expiry is judged as everywhere, by who watches the record. What a new holder does with the log
//! is the same as well, and that is what keeps the log safe when a service forgets (docs/adr/0063-leases-outside-of-the-store.md).
//!
//! | written as | place |
//! |---|---|
//! | `consul://HOST:PORT/KEY`, `consul+https://…` | a key of Consul's store |
//! | `etcd://HOST:PORT/KEY`, `etcd+https://…` | a key of etcd, by its JSON gateway |
//! | `kubernetes://NAMESPACE/NAME` | a Lease object of the Kubernetes cluster in which this runs |
//! | `static://primary`, `static://HOST:PORT` | nowhere: this node is the primary, or that one is |

mod consul;
mod etcd;
mod fixed;
mod http;
mod kubernetes;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use rhyolite_store::{Environment, Operation, StoreError, StoreErrorKind};
use rhyolite_writer::lease_place::LeasePlace;

use consul::Consul;
use etcd::Etcd;
use fixed::{Named, Own};
use kubernetes::Kubernetes;

/// What a URL names, where none of the services is meant.
const PRIMARY: &str = "primary";

/// Where the lease of a cluster lies, if not in its store.
#[derive(Clone, PartialEq, Eq)]
pub struct LeaseUrl {
    url: Url,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Consul,
    Etcd,
    Kubernetes,
    StaticPrimary,
    StaticReplica,
}

impl LeaseUrl {
    /// Understands a URL; asks nobody.
    ///
    /// # Errors
    /// One line that says what is wrong with it. Passwords are not repeated.
    pub fn parse(text: &str) -> Result<Self, String> {
        let known = "consul://HOST:PORT/KEY, etcd://HOST:PORT/KEY, kubernetes://NAMESPACE/NAME, static://primary or \
                     static://HOST:PORT";
        let url = Url::parse(text).map_err(|e| format!("{e}: a lease is {known}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("user and password do not belong into the URL: put them into the environment".to_owned());
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(format!("the host is missing: a lease is {known}"));
        }
        if url.fragment().is_some() {
            return Err("a lease has no fragment: nothing may follow a `#`".to_owned());
        }
        check_path(text, &url)?;
        let kind = match url.scheme() {
            "consul" | "consul+https" => Kind::Consul,
            "etcd" | "etcd+https" => Kind::Etcd,
            "kubernetes" => Kind::Kubernetes,
            "static" if url.host_str() == Some(PRIMARY) && url.port().is_none() => Kind::StaticPrimary,
            "static" => Kind::StaticReplica,
            scheme => return Err(format!("unknown scheme {scheme:?}: a lease is {known}")),
        };
        let lease = Self { url, kind };
        lease.check()?;
        Ok(lease)
    }

    fn check(&self) -> Result<(), String> {
        let path = self.path();
        let is_label = |text: &str| text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        match self.kind {
            Kind::Consul | Kind::Etcd if path.is_empty() => {
                return Err("the path is missing: it is the key under which the lease lies".to_owned());
            }
            Kind::Kubernetes
                if path.is_empty() || path.contains('/') || self.url.port().is_some() || !is_label(self.host()) =>
            {
                return Err("an object is named by kubernetes://NAMESPACE/NAME".to_owned());
            }
            Kind::StaticPrimary | Kind::StaticReplica if !path.is_empty() => {
                return Err("nothing follows static://primary or static://HOST:PORT".to_owned());
            }
            Kind::StaticReplica if self.url.port().is_none() => {
                return Err("static:// is followed by `primary`, or by HOST:PORT of the primary".to_owned());
            }
            _ => {}
        }
        self.check_options()
    }

    fn check_options(&self) -> Result<(), String> {
        let scheme = self.url.scheme();
        let takes_options = matches!(self.kind, Kind::Consul | Kind::Etcd);
        let mut known = BTreeSet::new();
        for (name, _) in self.url.query_pairs() {
            if !takes_options || !http::OPTIONS.contains(&&*name) {
                return Err(format!("unknown option {name:?} for a {scheme}: lease"));
            }
            // All of them are about TLS.
            if !self.is_tls() {
                return Err(format!(
                    "option {name:?} has no effect without TLS: write {scheme}+https:// for {scheme}://"
                ));
            }
            if !known.insert(name.clone()) {
                return Err(format!("option {name:?} is there twice"));
            }
        }
        Ok(())
    }

    /// Whether the service at the URL's own host is spoken with over TLS.
    fn is_tls(&self) -> bool {
        self.url.scheme().ends_with("+https")
    }

    /// Without slashes at its ends.
    fn path(&self) -> &str {
        self.url.path().trim_matches('/')
    }

    /// Whether the role was decided by a person, and is nobody's to take or to hand on.
    pub fn is_static(&self) -> bool {
        matches!(self.kind, Kind::StaticPrimary | Kind::StaticReplica)
    }

    /// HOST:PORT of the primary that a person has named, if that is not this node.
    pub fn named_primary(&self) -> Option<String> {
        let port = self.url.port().filter(|_| self.kind == Kind::StaticReplica)?;
        Some(format!("{}:{port}", self.host()))
    }

    /// Prepares the place; makes no request. `answer` is the longest that a call may take; `scheme` is how a named primary is reached: empty, or
    /// with `://` behind it.
    ///
    /// # Errors
    /// `Invalid` for settings that make no sense: a CA file that cannot be read, no Kubernetes around.
    pub fn open(
        &self,
        environment: &Environment,
        answer: Duration,
        scheme: &str,
    ) -> Result<Arc<dyn LeasePlace>, StoreError> {
        Ok(match self.kind {
            Kind::Consul => Arc::new(Consul::new(self, environment, answer)?),
            Kind::Etcd => Arc::new(Etcd::new(self, environment, answer)?),
            Kind::Kubernetes => Arc::new(Kubernetes::new(self, environment, answer)?),
            Kind::StaticPrimary => Arc::new(Own::default()),
            Kind::StaticReplica => {
                let primary = self.named_primary().expect("it was parsed as one");
                Arc::new(Named::new(format!("{scheme}{primary}")))
            }
        })
    }

    fn host(&self) -> &str {
        self.url.host_str().expect("checked when it was parsed")
    }

    fn invalid(&self, reason: impl Into<String>) -> StoreError {
        StoreError::new(StoreErrorKind::Invalid, Operation::Open, "", self.to_string(), reason)
    }
}

/// Refuses a path that would not be taken as it is written: a URL may lead up by `..`, also where it is written with percent signs. What is
/// written may be a part of a password by mistake, and is not repeated.
fn check_path(text: &str, url: &Url) -> Result<(), String> {
    let rest = text.trim().split_once("://").map_or("", |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let path = rest.find('/').map_or("", |start| &rest[start..]);
    let is_plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~/".contains(&c);
    let is_dots = |part: &str| part == "." || part == "..";
    if !path.bytes().all(is_plain) || path.split('/').any(is_dots) || path != url.path() {
        return Err("the path may have letters, digits and -._~ alone, and neither . nor .. as a part".to_owned());
    }
    Ok(())
}

impl fmt::Display for LeaseUrl {
    /// Without the options.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.url.as_str();
        f.write_str(shown.split_once('?').map_or(shown, |(shown, _)| shown).trim_end_matches('/'))
    }
}

impl fmt::Debug for LeaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood_and_shown_without_their_options() {
        for (url, kind, shown) in [
            ("consul://h:8500/app/lease", Kind::Consul, "consul://h:8500/app/lease"),
            ("consul+https://h/app?ca-file=/x", Kind::Consul, "consul+https://h/app"),
            ("etcd://[::1]:2379/a", Kind::Etcd, "etcd://[::1]:2379/a"),
            ("kubernetes://prod/app-1", Kind::Kubernetes, "kubernetes://prod/app-1"),
            ("static://primary", Kind::StaticPrimary, "static://primary"),
            ("static://10.0.0.1:20201", Kind::StaticReplica, "static://10.0.0.1:20201"),
            ("static://primary:20201", Kind::StaticReplica, "static://primary:20201"),
        ] {
            let lease = LeaseUrl::parse(url).unwrap_or_else(|e| panic!("{url}: {e}"));
            assert_eq!((lease.kind, lease.to_string().as_str()), (kind, shown));
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_a_reason() {
        for (url, reason) in [
            ("", "a lease is consul://"),
            ("false", "a lease is consul://"),
            ("zookeeper://h/x", "unknown scheme"),
            ("consul://h:8500", "path is missing"),
            ("etcd:///x", "host is missing"),
            ("etcd://u:secret@h/x", "into the environment"),
            ("etcd://u:12/secret@h/x", "the path may have"),
            ("etcd://u:12#secret@h/x", "no fragment"),
            ("consul://h/x?token=secret", "unknown option \"token\""),
            ("etcd://h/a%20b", "the path may have"),
            ("etcd://h/a b", "the path may have"),
            ("etcd://h/a/../b", "the path may have"),
            ("etcd://h/a/./b", "the path may have"),
            ("etcd://h/..", "the path may have"),
            ("etcd://h/a/%2e%2E/b", "the path may have"),
            ("etcd://h/a\tb", "the path may have"),
            ("etcd:/\t/h/a", "the path may have"),
            ("etcd://h/x#blue", "no fragment"),
            ("consul+https://h/x?ca-file=/x#", "no fragment"),
            ("etcd://h/x?timeout=1", "unknown option \"timeout\""),
            ("consul://h:8501/app?ca-file=/x", "write consul+https://"),
            ("etcd://h/k?cert-file=/c&key-file=/k", "write etcd+https://"),
            ("etcd://h/k?skip-verify=false", "write etcd+https://"),
            ("etcd+https://h/k?ca-file=/x&skip-verify=true&ca-file=/y", "option \"ca-file\" is there twice"),
            ("kubernetes://../a", "NAMESPACE/NAME"),
            ("kubernetes://ns", "NAMESPACE/NAME"),
            ("kubernetes://ns/a/b", "NAMESPACE/NAME"),
            ("kubernetes://ns/a?ca-file=/x", "unknown option"),
            ("static://h", "HOST:PORT"),
            ("static://primary/x", "nothing follows"),
        ] {
            let error = LeaseUrl::parse(url).expect_err(url);
            assert!(error.contains(reason) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
