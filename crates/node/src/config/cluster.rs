//! `cluster`: what is captured here is served to other nodes.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where followers are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Address that is listened at (`cluster.listen`).
    pub listen: SocketAddr,
    /// What every request must carry (`cluster.token`).
    pub token: Option<Token>,
    /// By what the node proves who it is (`cluster.tls`); without it nothing is encrypted.
    pub tls: Option<TlsFiles>,
    /// Where the proxy of the node is, HOST:PORT, for whoever asks.
    pub proxy: Option<String>,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The node's certificate, and those that lead to its root (`cluster.tls.cert`).
    pub cert: PathBuf,
    /// Its private key (`cluster.tls.key`).
    pub key: PathBuf,
    /// Who vouches for followers (`cluster.tls.client-ca`): each must show a certificate.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Files, of which some may not be given.
    ///
    /// # Errors
    /// One line: one is there without the other that it needs.
    pub fn new(
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
        client_ca: Option<PathBuf>,
    ) -> Result<Option<Self>, &'static str> {
        match (cert, key, client_ca) {
            (Some(cert), Some(key), client_ca) => Ok(Some(Self { cert, key, client_ca })),
            (None, None, None) => Ok(None),
            (Some(_), None, _) => Err("a certificate is of no use without its key"),
            (None, Some(_), _) => Err("a key is of no use without its certificate"),
            (None, None, Some(_)) => Err("followers are asked for certificates over TLS only: give cert and key, too"),
        }
    }
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
    pub fn new(listen: SocketAddr, token: Option<Token>, tls: Option<TlsFiles>) -> Result<Self, String> {
        let asks = token.is_some() || tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if !listen.ip().is_loopback() {
            let missing = match (&tls, asks) {
                (None, _) => "TLS (cert and key)",
                (Some(_), false) => "a token, or a client-ca that vouches for followers",
                (Some(_), true) => return Ok(Self { listen, token, tls, proxy: None }),
            };
            return Err(format!(
                "cluster.listen is {listen}, where others can reach it: that needs {missing}. Without, only a loopback address may be \
                 listened at, such as 127.0.0.1:{}",
                listen.port()
            ));
        }
        Ok(Self { listen, token, tls, proxy: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_others_listen_there_is_tls_and_a_question() {
        let token = || Some(Token::new("secret").unwrap());
        let files =
            |ca: Option<&str>| TlsFiles::new(Some("c".into()), Some("k".into()), ca.map(PathBuf::from)).unwrap();
        let open: SocketAddr = "0.0.0.0:1".parse().unwrap();
        assert!(ClusterConfig::new(open, token(), files(None)).is_ok());
        assert!(ClusterConfig::new(open, None, files(Some("ca"))).is_ok());
        assert!(ClusterConfig::new(open, None, files(None)).unwrap_err().contains("a token"));
        assert!(ClusterConfig::new(open, token(), None).unwrap_err().contains("TLS"));
        assert!(TlsFiles::new(Some("c".into()), None, None).is_err());
        assert!(TlsFiles::new(None, Some("k".into()), None).is_err());
        assert!(TlsFiles::new(None, None, Some("ca".into())).is_err());
    }

    #[test]
    fn without_tls_only_loopback_is_listened_at() {
        for (address, is_right) in [("127.0.0.1:1", true), ("127.9.9.9:1", true), ("[::1]:1", true)]
            .into_iter()
            .chain([("0.0.0.0:1", false), ("10.0.0.1:1", false), ("[::]:1", false)])
        {
            assert_eq!(ClusterConfig::new(address.parse().unwrap(), None, None).is_ok(), is_right, "{address}");
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
