//! From a server's address to a session: TCP, SSH with the server's key checked, the user's proof, SFTP.
//!
//! The server's key is compared with the option `host-key`, or with the known hosts file. A server that is neither is refused; only
//! `skip-verify=true` trusts any. The user is proved by the key file, the agent, the usual key files, the password, in this
//! order, as far as they are there. RSA keys are not supported: the only implementation at hand has a timing weakness.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::client::{self, AuthResult, Handle};
use russh::keys::agent::client::AgentClient;
use russh::keys::known_hosts::known_host_keys_path;
use russh::keys::{Algorithm, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate, load_secret_key};
use russh_sftp::client::RawSftpSession;

/// Longest wait for each of the steps.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Silence after which the server is asked whether it is still there, and how often it may fail to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_MAX: usize = 3;

/// Key files of the user that are tried, in `~/.ssh`.
const KEY_FILES: [&str; 2] = ["id_ed25519", "id_ecdsa"];

/// How the server's key is checked.
#[derive(Clone, Debug)]
pub(super) enum HostKey {
    /// It is this one.
    Is(Box<PublicKey>),
    /// It is in this file.
    In(PathBuf),
    /// It is not.
    Any,
}

/// Whom to connect to, and as whom.
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) host_key: HostKey,
    /// Asked for: no other key is tried.
    pub(super) key_path: Option<PathBuf>,
    pub(super) key_passphrase: Option<String>,
    pub(super) password: Option<String>,
    /// Socket of the user's agent.
    pub(super) agent: Option<PathBuf>,
    pub(super) home: PathBuf,
}

impl std::fmt::Debug for Target {
    /// Without secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// Why there is no session.
#[derive(Debug)]
pub(super) enum Refused {
    /// The server is another one, or does not accept the user: trying again does not help.
    Denied(String),
    /// It does not answer.
    Unavailable(String),
}

/// A session, and what the server offers beyond the standard.
pub(super) struct Session {
    pub(super) sftp: RawSftpSession,
    /// Ends the connection when it is dropped.
    _ssh: Handle<Checker>,
    pub(super) has_fsync: bool,
    pub(super) has_hardlink: bool,
    pub(super) has_posix_rename: bool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("has_posix_rename", &self.has_posix_rename).finish_non_exhaustive()
    }
}

/// Looks at the server's key.
pub(super) struct Checker {
    host: String,
    port: u16,
    host_key: HostKey,
    /// What was wrong with it.
    fault: Arc<Mutex<Option<String>>>,
}

impl client::Handler for Checker {
    type Error = russh::Error;

    async fn check_server_key(&mut self, offered: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let fault = match offered {
            PublicKeyOrCertificate::PublicKey { key, .. } => self.fault_of(key),
            PublicKeyOrCertificate::Certificate(_) => Some("it shows a certificate, which is not supported".to_owned()),
        };
        let is_good = fault.is_none();
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
        Ok(is_good)
    }
}

impl Checker {
    fn fault_of(&self, key: &PublicKey) -> Option<String> {
        let shown = || format!("{} {}", key.algorithm(), key.fingerprint(russh::keys::HashAlg::Sha256));
        match &self.host_key {
            HostKey::Any => None,
            HostKey::Is(wanted) if wanted.key_data() == key.key_data() => None,
            HostKey::Is(_) => Some(format!("its key is {}, not the one that host-key gives", shown())),
            HostKey::In(path) => match known_host_keys_path(&self.host, self.port, path) {
                Ok(known) if known.iter().any(|(_, k)| k.key_data() == key.key_data()) => None,
                Ok(known) if known.is_empty() => Some(format!(
                    "it is not in {} (its key is {}): add it there with ssh-keyscan, or give host-key",
                    path.display(),
                    shown()
                )),
                Ok(_) => Some(format!(
                    "its key is {}, but {} knows another: somebody may be listening",
                    shown(),
                    path.display()
                )),
                Err(e) => Some(format!("{} cannot be read: {e}", path.display())),
            },
        }
    }
}

/// Makes a session.
pub(super) async fn connect(target: &Target, request_timeout: Duration) -> Result<Session, Refused> {
    let fault = Arc::new(Mutex::new(None));
    let checker = Checker {
        host: target.host.clone(),
        port: target.port,
        host_key: target.host_key.clone(),
        fault: Arc::clone(&fault),
    };
    let address = (target.host.as_str(), target.port);
    let mut ssh = match step("connect", client::connect(Arc::new(config(target)), address, checker)).await? {
        Ok(ssh) => ssh,
        Err(e) => {
            let fault = fault.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(match fault {
                Some(fault) => Refused::Denied(format!("the server is not trusted: {fault}")),
                None => Refused::Unavailable(format!("connect: {e}")),
            });
        }
    };
    authenticate(target, &mut ssh).await?;
    let failed = |what: &str, e: &dyn std::fmt::Display| Refused::Unavailable(format!("{what}: {e}"));
    let channel =
        step("open a channel", ssh.channel_open_session()).await?.map_err(|e| failed("open a channel", &e))?;
    let asked = step("ask for SFTP", channel.request_subsystem(true, "sftp")).await?;
    asked.map_err(|e| failed("ask for SFTP", &e))?;
    let sftp = RawSftpSession::new(channel.into_stream());
    sftp.set_timeout(request_timeout.as_secs());
    let version = sftp.init().await.map_err(|e| failed("begin SFTP", &e))?;
    let has = |name: &str| version.extensions.contains_key(name);
    Ok(Session {
        sftp,
        _ssh: ssh,
        has_fsync: has("fsync@openssh.com"),
        has_hardlink: has("hardlink@openssh.com"),
        has_posix_rename: has("posix-rename@openssh.com"),
    })
}

fn config(target: &Target) -> client::Config {
    let mut config = client::Config {
        nodelay: true,
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: KEEPALIVE_MAX,
        ..client::Config::default()
    };
    // A server has keys of several kinds and shows the one that the client likes best: it must be one that is known.
    let known: Vec<Algorithm> = match &target.host_key {
        HostKey::Any => Vec::new(),
        HostKey::Is(key) => vec![key.algorithm()],
        HostKey::In(path) => {
            let known = known_host_keys_path(&target.host, target.port, path).unwrap_or_default();
            known.into_iter().map(|(_, key)| key.algorithm()).collect()
        }
    };
    let supported: Vec<Algorithm> = config.preferred.key.iter().filter(|a| known.contains(a)).cloned().collect();
    if !supported.is_empty() {
        config.preferred.key = Cow::Owned(supported);
    }
    config
}

/// One step within its time.
async fn step<T>(what: &str, work: impl Future<Output = T>) -> Result<T, Refused> {
    let limit = STEP_TIMEOUT.as_secs();
    let done = tokio::time::timeout(STEP_TIMEOUT, work).await;
    done.map_err(|_| Refused::Unavailable(format!("{what}: no answer within {limit} s")))
}

async fn authenticate(target: &Target, ssh: &mut Handle<Checker>) -> Result<(), Refused> {
    let mut tried = Vec::new();
    if let Some(path) = &target.key_path {
        let key = load_secret_key(path, target.key_passphrase.as_deref());
        let key = key.map_err(|e| Refused::Denied(format!("the key file {}: {e}", path.display())))?;
        tried.push(path.display().to_string());
        if with_key(target, ssh, key).await? {
            return Ok(());
        }
    } else {
        if let Some(socket) = &target.agent {
            tried.push("the agent".to_owned());
            if with_agent(target, ssh, socket).await? {
                return Ok(());
            }
        }
        for path in KEY_FILES.map(|name| target.home.join(".ssh").join(name)) {
            let Ok(key) = load_secret_key(&path, target.key_passphrase.as_deref()) else { continue };
            tried.push(path.display().to_string());
            if with_key(target, ssh, key).await? {
                return Ok(());
            }
        }
    }
    if let Some(password) = &target.password {
        tried.push("the password".to_owned());
        let answer = step("log in", ssh.authenticate_password(&target.user, password)).await?;
        if accepted(answer)? {
            return Ok(());
        }
    }
    let tried = if tried.is_empty() { "there is no key and no password".to_owned() } else { tried.join(", ") };
    Err(Refused::Denied(format!("the server does not accept the user {:?} (tried: {tried})", target.user)))
}

fn accepted(answer: Result<AuthResult, russh::Error>) -> Result<bool, Refused> {
    answer.map(|a| a.success()).map_err(|e| Refused::Unavailable(format!("log in: {e}")))
}

async fn with_key(target: &Target, ssh: &mut Handle<Checker>, key: russh::keys::PrivateKey) -> Result<bool, Refused> {
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    accepted(step("log in", ssh.authenticate_publickey(&target.user, key)).await?)
}

/// An agent that does not answer is no reason not to try the rest.
async fn with_agent(target: &Target, ssh: &mut Handle<Checker>, socket: &std::path::Path) -> Result<bool, Refused> {
    let Ok(mut agent) = step("ask the agent", AgentClient::connect_uds(socket)).await? else { return Ok(false) };
    let Ok(identities) = step("ask the agent", agent.request_identities()).await? else { return Ok(false) };
    for identity in identities {
        let key = identity.public_key().into_owned();
        let signed = ssh.authenticate_publickey_with(&target.user, key, None, &mut agent);
        if let Ok(answer) = step("log in", signed).await?
            && answer.success()
        {
            return Ok(true);
        }
    }
    Ok(false)
}
