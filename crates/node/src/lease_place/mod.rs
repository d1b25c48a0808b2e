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
        let is_plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~/".contains(&c);
        if !path.bytes().all(is_plain) || path.split('/').any(|part| part == "." || part == "..") {
            return Err(format!("{path:?} is no path of letters, digits and -._~"));
        }
        match self.kind {
            Kind::Consul | Kind::Etcd if path.is_empty() => {
                return Err("the path is missing: it is the key under which the lease lies".to_owned());
            }
            Kind::Kubernetes if path.is_empty() || path.contains('/') || self.url.port().is_some() => {
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
        let options: Vec<String> = self.url.query_pairs().map(|(name, _)| name.into_owned()).collect();
        let takes_options = matches!(self.kind, Kind::Consul | Kind::Etcd);
        match options.iter().find(|name| !takes_options || !http::OPTIONS.contains(&name.as_str())) {
            Some(name) => Err(format!("unknown option {name:?} for a {}: lease", self.url.scheme())),
            None => Ok(()),
        }
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

impl std::str::FromStr for LeaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
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
            ("etcd://h/a%20b", "no path of letters"),
            ("etcd://h/x?timeout=1", "unknown option \"timeout\""),
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
