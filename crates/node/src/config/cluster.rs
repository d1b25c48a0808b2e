//! `cluster`: what is captured here is served to other nodes, and who may push to a replica.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::stream::client::Address;
use crate::stream::tls::ClientFiles;

/// Replicas that one process dials at most.
const PUSHES_MAX: usize = 64;

/// Where followers are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Address that is listened at (`cluster.listen`).
    pub listen: Option<SocketAddr>,
    /// Replicas that are dialed, because they cannot reach this node (`cluster.push-to`).
    pub push_to: Vec<Address>,
    /// What every request must carry, and the replicas that are dialed must know (`cluster.token`).
    pub token: Option<Token>,
    /// By what the node proves who it is (`cluster.tls`); without it nothing is encrypted.
    pub tls: Option<TlsFiles>,
    /// Where the proxy of the node is, HOST:PORT, for whoever asks.
    pub proxy: Option<String>,
}

/// Where a primary may dial, to be followed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptConfig {
    /// Address that is listened at.
    pub listen: SocketAddr,
    /// What it must know.
    pub token: Option<Token>,
    /// By what this replica proves who it is; without it nothing is encrypted.
    pub tls: Option<TlsFiles>,
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

    /// What is shown where this node dials: its own certificate to whoever asks for one, and it believes those who vouch for followers.
    pub fn as_client(&self) -> ClientFiles {
        ClientFiles { ca: self.client_ca.clone(), identity: Some((self.cert.clone(), self.key.clone())) }
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
    pub fn new(
        listen: Option<SocketAddr>,
        push_to: &[String],
        token: Option<Token>,
        tls: Option<TlsFiles>,
    ) -> Result<Self, String> {
        if let Some(listen) = listen {
            check_listen("cluster.listen", listen, token.as_ref(), tls.as_ref())?;
        }
        if push_to.len() > PUSHES_MAX {
            return Err(format!("cluster.push-to has {} replicas, at most {PUSHES_MAX} are dialed", push_to.len()));
        }
        let mut all = Vec::with_capacity(push_to.len());
        for text in push_to {
            let address = parse_push_to(text, tls.is_some()).map_err(|m| format!("cluster.push-to: {m}"))?;
            check_push_to(&address, token.as_ref(), tls.as_ref())?;
            if all.contains(&address) {
                return Err(format!("cluster.push-to names {address} twice"));
            }
            all.push(address);
        }
        Ok(Self { listen, push_to: all, token, tls, proxy: None })
    }

    /// Whether there is anything to be done.
    pub fn has_effect(&self) -> bool {
        self.listen.is_some() || !self.push_to.is_empty()
    }
}

impl AcceptConfig {
    /// Refuses what would let anybody become the primary of this replica, or read what is sent.
    ///
    /// # Errors
    /// One line.
    pub fn new(listen: SocketAddr, token: Option<Token>, tls: Option<TlsFiles>) -> Result<Self, String> {
        check_listen("accept", listen, token.as_ref(), tls.as_ref())?;
        Ok(Self { listen, token, tls })
    }
}

/// Where others can reach it, everybody is asked who he is, over TLS.
fn check_listen(key: &str, listen: SocketAddr, token: Option<&Token>, tls: Option<&TlsFiles>) -> Result<(), String> {
    if listen.ip().is_loopback() {
        return Ok(());
    }
    let asks = token.is_some() || tls.is_some_and(|tls| tls.client_ca.is_some());
    let missing = match (tls, asks) {
        (None, _) => "TLS (cert and key)",
        (Some(_), false) => "a token, or certificates (PEM) of those who vouch for the other end",
        (Some(_), true) => return Ok(()),
    };
    Err(format!(
        "{key} is {listen}, where others can reach it: that needs {missing}. Without, only a loopback address may be listened at, such as \
         127.0.0.1:{}",
        listen.port()
    ))
}

/// `HOST:PORT`, over TLS where this node has it, or a URL that says so itself.
fn parse_push_to(text: &str, has_tls: bool) -> Result<Address, String> {
    let scheme = if has_tls { "https" } else { "http" };
    let url = if text.contains("://") { text.to_owned() } else { format!("{scheme}://{text}") };
    url.parse().map_err(|_| {
        format!("{text:?} is no address of a replica: write HOST:PORT, https://HOST:PORT, or without TLS http://127.0.0.1:PORT")
    })
}

fn check_push_to(address: &Address, token: Option<&Token>, tls: Option<&TlsFiles>) -> Result<(), String> {
    let ip: Option<IpAddr> = address.host().parse().ok();
    if address.is_secret() {
        let is_known = token.is_some() || tls.is_some();
        return match ip.is_some_and(|ip| ip.is_loopback()) || is_known {
            true => Ok(()),
            false => Err(format!(
                "cluster.push-to names {address}, which cannot know this node: that needs a token, or a certificate (cert and key)"
            )),
        };
    }
    // What a name stands for is seen when it is dialed.
    match ip.is_some_and(|ip| !ip.is_loopback()) {
        true => Err(format!(
            "cluster.push-to names {address}, on the way to which others can hear: that needs TLS (https://, or cert and key)"
        )),
        false => Ok(()),
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
        assert!(ClusterConfig::new(Some(open), &[], token(), files(None)).is_ok());
        assert!(ClusterConfig::new(Some(open), &[], None, files(Some("ca"))).is_ok());
        assert!(ClusterConfig::new(Some(open), &[], None, files(None)).unwrap_err().contains("a token"));
        assert!(ClusterConfig::new(Some(open), &[], token(), None).unwrap_err().contains("TLS"));
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
            assert_eq!(
                ClusterConfig::new(Some(address.parse().unwrap()), &[], None, None).is_ok(),
                is_right,
                "{address}"
            );
        }
    }

    #[test]
    fn replicas_that_are_dialed_are_reached_over_tls_and_know_this_node() {
        let token = || Some(Token::new("secret").unwrap());
        let tls = || TlsFiles::new(Some("c".into()), Some("k".into()), None).unwrap();
        let check = |to: &[&str], token, tls| {
            let to: Vec<_> = to.iter().map(|text| (*text).to_owned()).collect();
            let config = ClusterConfig::new(None, &to, token, tls)?;
            Ok::<_, String>(config.push_to.iter().map(Address::to_string).collect::<Vec<_>>())
        };
        assert_eq!(check(&["127.0.0.1:1", "[::1]:2"], None, None).unwrap(), ["http://127.0.0.1:1", "http://[::1]:2"]);
        assert_eq!(check(&["replica.example:1"], None, tls()).unwrap(), ["https://replica.example:1"]);
        assert_eq!(check(&["https://replica.example:1"], token(), None).unwrap(), ["https://replica.example:1"]);
        assert_eq!(check(&["http://localhost:1"], None, tls()).unwrap(), ["http://localhost:1"]);
        assert!(check(&["10.0.0.1:1"], token(), None).unwrap_err().contains("needs TLS"));
        assert!(check(&["https://10.0.0.1:1"], None, None).unwrap_err().contains("needs a token"));
        assert!(check(&["replica.example"], None, None).unwrap_err().contains("no address of a replica"));
        assert!(check(&["127.0.0.1:1", "http://127.0.0.1:1"], None, None).unwrap_err().contains("twice"));
        let many: Vec<_> = (1..=PUSHES_MAX + 1).map(|port| format!("127.0.0.1:{port}")).collect();
        assert!(ClusterConfig::new(None, &many, None, None).unwrap_err().contains("at most 64"));
    }

    #[test]
    fn a_token_is_itself_and_never_shown() {
        let token = Token::new("s3cret").unwrap();
        assert!(token.is(b"s3cret") && !token.is(b"s3creT") && !token.is(b"s3cre") && !token.is(b""));
        assert_eq!(format!("{token:?}"), "Token(..)");
        assert!(Token::new("").is_err() && Token::new("a b").is_err() && Token::new("ä").is_err());
    }
}
