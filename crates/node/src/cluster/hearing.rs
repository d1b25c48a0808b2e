//! What a new primary asks the nodes that the lease names as witnesses: where their files are ([`rhyolite_logic::witness`]).

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rhyolite_format::lease::Witnesses;
use rhyolite_format::{Lineage, Pos};
use rhyolite_logic::witness::{Testimony, is_enough, testimony};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::node_address;
use crate::follow::peer::{self, Better, Found, Whereabouts};
use crate::follow::replica::For;
use crate::stream::client::{Access, Link, LinkError};

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Who is asked, and by whom.
pub(super) struct Hearing {
    /// The list of the lease.
    pub(super) witnesses: Witnesses,
    /// This node.
    pub(super) own: String,
    /// What nodes show each other.
    pub(super) access: Access,
    /// Turns true when what was acknowledged is given up.
    pub(super) forgets: watch::Receiver<bool>,
    links: Mutex<HashMap<String, Link>>,
}

/// Who has the most of what was acknowledged.
#[derive(Debug)]
pub(super) enum Best {
    /// Nobody has anything beyond the end of the log.
    Nobody,
    /// This node.
    Own,
    /// Another.
    Other(Box<Better>),
}

/// What one node said.
enum Answer {
    None(String),
    Of(Option<Whereabouts>, Option<Link>),
}

impl Hearing {
    pub(super) fn new(witnesses: Witnesses, own: String, access: Access, forgets: watch::Receiver<bool>) -> Self {
        Self { witnesses, own, access, forgets, links: Mutex::default() }
    }

    /// Whether this node has itself told of everything that is asked for, as long as it has lost nothing.
    pub(super) fn is_own(&self) -> bool {
        self.witnesses.of == self.own
    }

    /// Asks all nodes about one database, whose log ends at `end`.
    ///
    /// # Errors
    /// Not enough is known: one line.
    pub(super) async fn hear(&self, name: &str, path: &Path, (lineage, end): (Lineage, Pos)) -> Result<Best, String> {
        let (mut heard, mut silent, mut best) = (Vec::new(), Vec::new(), None::<(Pos, Best)>);
        for (node, answer) in self.ask_all(name, path, end).await {
            let (file, link) = match answer {
                Answer::None(why) => {
                    silent.push(format!("{node}: {why}"));
                    continue;
                }
                Answer::Of(file, link) => (file, link),
            };
            let at = file.as_ref().map(|file| (file.lineage, file.pos));
            let passed = file.as_ref().map(Whereabouts::passed);
            match testimony((lineage, end), at, passed.unwrap_or(false.into())) {
                Testimony::Nothing => heard.push(node),
                Testimony::Unproved(pos) => {
                    silent.push(format!("{node}: its file is at {pos}, and nothing shows that {end} lies behind that"));
                }
                Testimony::Beyond(pos) => {
                    if best.as_ref().is_none_or(|(best, _)| pos.txid > best.txid) {
                        let other = link.zip(file).map(|(link, at)| Better { link, address: node.clone(), at });
                        best = Some((pos, other.map_or(Best::Own, |other| Best::Other(Box::new(other)))));
                    }
                    heard.push(node);
                }
            }
        }
        if is_enough(&self.witnesses, heard.iter().map(String::as_str)) || *self.forgets.borrow() {
            return Ok(best.map_or(Best::Nobody, |(_, best)| best));
        }
        let needed = self.witnesses.answers_needed();
        Err(format!(
            "{} acknowledged commits that {} of {} have, and it is known of {} what they have, not of {needed}: {} (`rhyolite ctl \
             promote --forget-acknowledged` gives up what is not known)",
            self.witnesses.of,
            self.witnesses.count,
            self.witnesses.nodes.join(", "),
            heard.len(),
            silent.join("; ")
        ))
    }

    /// All answers, this node's first: of two that have the same it is the better one.
    async fn ask_all(&self, name: &str, path: &Path, end: Pos) -> Vec<(String, Answer)> {
        let mut answers = Vec::new();
        let mut asked = JoinSet::new();
        for node in &self.witnesses.nodes {
            if *node == self.own {
                let path = path.to_owned();
                let looked = tokio::task::spawn_blocking(move || peer::whereabouts(&path, end, For::Own)).await;
                let answer = match looked.expect("looking does not panic") {
                    Ok(Found::Held(at)) => Answer::Of(Some(at), None),
                    Ok(Found::Nothing) => Answer::Of(None, None),
                    Ok(Found::Unknown) => Answer::None("where its file is, is not known".to_owned()),
                    Err(error) => Answer::None(error.to_string()),
                };
                answers.push((node.clone(), answer));
                continue;
            }
            let (known, access) = (self.known(node), self.access.clone());
            let (node, name) = (node.clone(), name.to_owned());
            asked.spawn(async move {
                let answer = tokio::time::timeout(ANSWER_MAX, ask(known, &node, &access, &name, end)).await;
                (node, answer.unwrap_or_else(|_| Err("it does not answer".to_owned())))
            });
        }
        while let Some(answer) = asked.join_next().await {
            let (node, answer) = answer.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            answers.push(match answer {
                Ok((at, link)) => {
                    links.insert(node.clone(), link.clone());
                    (node, Answer::Of(at, Some(link)))
                }
                Err(why) => {
                    links.remove(&node);
                    (node, Answer::None(why))
                }
            });
        }
        answers
    }

    fn known(&self, node: &str) -> Option<Link> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned()
    }
}

/// Asks one node. A connection that was lost since is made anew, once.
async fn ask(
    known: Option<Link>,
    node: &str,
    access: &Access,
    name: &str,
    end: Pos,
) -> Result<(Option<Whereabouts>, Link), String> {
    if let Some(link) = known {
        match peer::ask(&link, name, end).await {
            Err(LinkError::Lost(_)) => {}
            answer => return answer.map(|at| (at, link)).map_err(|e| e.to_string()),
        }
    }
    let link = Link::connect(&node_address(node)?, access, ANSWER_MAX).await.map_err(|e| e.to_string())?;
    let at = peer::ask(&link, name, end).await.map_err(|e| e.to_string())?;
    Ok((at, link))
}
