//! `cluster`: what is captured here is served to other nodes.

use std::fmt;
use std::net::SocketAddr;

/// Where followers are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Address that is listened at (`cluster.listen`).
    pub listen: SocketAddr,
    /// What every request must carry (`cluster.token`).
    pub token: Option<Token>,
}

/// A secret that two nodes share.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token as it is written.
    ///
    /// # Errors
    /// One line, without the token.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("a token is made of visible ASCII characters without spaces, one at least".to_owned());
        }
        Ok(Self(text))
    }

    /// Whether these are its bytes. How long that takes does not tell how many of them are right.
    pub fn is(&self, given: &[u8]) -> bool {
        let own = self.0.as_bytes();
        own.len() == given.len() && own.iter().zip(given).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }

    /// The secret itself, for a request.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl ClusterConfig {
    /// Refuses what would let anybody read or change what is sent.
    ///
    /// # Errors
    /// One line.
    pub fn new(listen: SocketAddr, token: Option<Token>) -> Result<Self, String> {
        if !listen.ip().is_loopback() {
            return Err(format!(
                "cluster.listen is {listen}, but the stream has no TLS yet: only a loopback address may be listened at, such as \
                 127.0.0.1:{}; a tunnel (ssh -L, WireGuard) takes it to other machines",
                listen.port()
            ));
        }
        Ok(Self { listen, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_listened_at() {
        for (address, is_right) in [("127.0.0.1:1", true), ("127.9.9.9:1", true), ("[::1]:1", true)]
            .into_iter()
            .chain([("0.0.0.0:1", false), ("10.0.0.1:1", false), ("[::]:1", false)])
        {
            assert_eq!(ClusterConfig::new(address.parse().unwrap(), None).is_ok(), is_right, "{address}");
        }
    }

    #[test]
    fn a_token_is_itself_and_never_shown() {
        let token = Token::new("s3cret").unwrap();
        assert!(token.is(b"s3cret") && !token.is(b"s3creT") && !token.is(b"s3cre") && !token.is(b""));
        assert_eq!(format!("{token:?}"), "Token(..)");
        assert!(Token::new("").is_err() && Token::new("a b").is_err() && Token::new("ä").is_err());
    }
}
