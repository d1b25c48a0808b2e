//! Where the connection to a node comes from: it is dialed, or it dials.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::stream::accept::Accepting;
use crate::stream::client::{Access, Address, Link, LinkError};

/// The node that is followed.
#[derive(Clone, Debug)]
pub enum Source {
    /// It is dialed.
    Dialed {
        /// Where it listens.
        address: Address,
        /// What it is shown.
        access: Access,
    },
    /// It dials, and has the place here for as long as it does.
    Accepted(Arc<Accepting>),
}

impl Source {
    /// A connection. Where it comes from the other end there is no limit to how long it takes.
    ///
    /// # Errors
    /// None could be made.
    pub async fn connect(&self, within: Duration) -> Result<Link, LinkError> {
        match self {
            Self::Dialed { address, access } => Link::connect(address, access, within).await,
            Self::Accepted(accepting) => Ok(accepting.link().await),
        }
    }

    /// A connection for a question beside those of the following: another one, or where there can be none, the same.
    ///
    /// # Errors
    /// There is none.
    pub async fn ask(&self, within: Duration) -> Result<Link, LinkError> {
        match self {
            Self::Dialed { address, access } => Link::connect(address, access, within).await,
            Self::Accepted(accepting) => {
                accepting.current().ok_or_else(|| LinkError::Lost("no primary has dialed".to_owned()))
            }
        }
    }

    /// Gives back what [`Source::ask`] gave.
    pub fn asked(&self, link: &Link) {
        if let Self::Dialed { .. } = self {
            link.close();
        }
    }

    /// Whether the other end decides when there is a connection.
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted(_))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dialed { address, .. } => address.fmt(f),
            Self::Accepted(accepting) => write!(f, "the primary that dials {}", accepting.listen()),
        }
    }
}
