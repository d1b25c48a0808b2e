//! How a primary that dials and its replica make themselves known (docs/spec/stream.md, "Pushing").
//!
//! Nothing is believed of the other end, and nothing is told to it, before it has proved that it knows the token. Neither ever sends the token itself here.

use aws_lc_rs::hmac;
use rhyolite_format::Epoch;
use rhyolite_format::push::{Answer, Challenge, Greeting, Hello, PROOF_SIZE, Proof, Prover, Verdict, signed};
use rhyolite_format::stream::HEADER_SIZE;
use rhyolite_logic::push::Comer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::config::cluster::Token;
use crate::config::io_text;
use crate::random;

/// What is said of an end that closes the connection and says nothing.
pub(super) const CLOSED: &str = "it closed the connection without an answer";
/// What may be wrong with that end of the primary's.
const HINT: &str = "is it a replica that was told to --accept, and are both ends with TLS or both without?";

/// The primary's side: ends when the replica has taken it and has proved the token.
///
/// # Errors
/// One line: it does not want to, or is not who it should be.
pub(super) async fn introduce(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    token: Option<&Token>,
    id: [u8; 16],
    epoch: Epoch,
) -> Result<(), String> {
    let hello = Hello { id, epoch, nonce: random::bytes(), has_token: token.is_some() };
    send(stream, &Greeting::Hello(hello)).await?;
    let answer = receive(stream).await.map_err(|text| format!("{text}: {HINT}"))?;
    let Greeting::Challenge(challenge) = answer else { return Err(unexpected()) };
    send(stream, &Greeting::Proof(prove(token, Prover::Primary, &hello, &challenge))).await?;
    let Greeting::Verdict(verdict) = receive(stream).await? else { return Err(unexpected()) };
    match verdict.answer {
        Answer::Taken if is_proved(token, Prover::Replica, &hello, &challenge, &verdict.proof) => Ok(()),
        Answer::Taken => Err("the replica does not know the token: nothing is sent to it".to_owned()),
        Answer::Unknown | Answer::Busy | Answer::Stale => Err(format!("the replica refuses: {}", verdict.text)),
    }
}

/// The replica's side: gives the primary that has proved the token and was taken by `judge`, which also says why.
///
/// # Errors
/// One line: it was refused, and told so, or what it sent is nothing of ours.
pub(super) async fn meet(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    token: Option<&Token>,
    judge: impl FnOnce(Comer) -> (Answer, String),
) -> Result<Comer, String> {
    let Greeting::Hello(hello) = receive(stream).await? else { return Err(unexpected()) };
    let challenge = Challenge { nonce: random::bytes(), has_token: token.is_some() };
    send(stream, &Greeting::Challenge(challenge)).await?;
    let Greeting::Proof(proof) = receive(stream).await? else { return Err(unexpected()) };
    let comer = Comer::from(&hello);
    let (answer, text) = match (token, hello.has_token) {
        (Some(_), false) => (Answer::Unknown, "a token is wanted, and the primary has none".to_owned()),
        (None, true) => (Answer::Unknown, "the primary wants a token to be known, and there is none here".to_owned()),
        _ if is_proved(token, Prover::Primary, &hello, &challenge, &proof) => judge(comer),
        _ => (Answer::Unknown, "the token is wrong".to_owned()),
    };
    let is_taken = answer == Answer::Taken;
    let proof = if is_taken { prove(token, Prover::Replica, &hello, &challenge) } else { [0; PROOF_SIZE] };
    send(stream, &Greeting::Verdict(Verdict { answer, proof, text: text.clone() })).await?;
    if is_taken {
        return Ok(comer);
    }
    // So that the answer arrives. Whether it does is for the other end to say.
    let _ = stream.shutdown().await;
    Err(text)
}

fn unexpected() -> String {
    "it sent another message than the one that was its turn".to_owned()
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), greeting: &Greeting) -> Result<(), String> {
    let sent = async {
        stream.write_all(&greeting.encode()).await?;
        stream.flush().await
    };
    sent.await.map_err(|e| io_text(&e))
}

/// Reads one message and not a byte more: what follows is HTTP/2.
async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Result<Greeting, String> {
    let mut bytes = Vec::with_capacity(HEADER_SIZE);
    loop {
        let wanted = match Greeting::len(&bytes).map_err(|e| e.to_string())? {
            Some(len) if len == bytes.len() => return Greeting::decode(&bytes).map_err(|e| e.to_string()),
            Some(len) => len,
            // The first byte tells already whether it is one of ours.
            None if bytes.is_empty() => 1,
            None => HEADER_SIZE,
        };
        let begun = bytes.len();
        bytes.resize(wanted, 0);
        match stream.read(&mut bytes[begun..]).await.map_err(|e| io_text(&e))? {
            0 => return Err(CLOSED.to_owned()),
            read => bytes.truncate(begun + read),
        }
    }
}

fn key(token: &Token) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, token.secret().as_bytes())
}

fn prove(token: Option<&Token>, prover: Prover, hello: &Hello, challenge: &Challenge) -> Proof {
    let Some(token) = token else { return [0; PROOF_SIZE] };
    let tag = hmac::sign(&key(token), &signed(prover, hello, challenge));
    tag.as_ref().try_into().expect("HMAC-SHA256 has the size of a proof")
}

/// Whether it is one. How long that takes does not tell how much of it is right.
fn is_proved(token: Option<&Token>, prover: Prover, hello: &Hello, challenge: &Challenge, proof: &Proof) -> bool {
    match token {
        Some(token) => hmac::verify(&key(token), &signed(prover, hello, challenge), proof).is_ok(),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    fn token(text: &str) -> Option<Token> {
        (!text.is_empty()).then(|| Token::new(text).unwrap())
    }

    /// What both ends come to, with these tokens; none is empty.
    async fn meeting(primary: &str, replica: &str, answer: Answer) -> (Result<(), String>, Result<Comer, String>) {
        let (mut ours, mut theirs) = duplex(64);
        let (primary, replica) = (token(primary), token(replica));
        let epoch = Epoch::new(7).unwrap();
        tokio::join!(
            introduce(&mut ours, primary.as_ref(), [1; 16], epoch),
            meet(&mut theirs, replica.as_ref(), |_| (answer, "because".to_owned())),
        )
    }

    #[tokio::test]
    async fn both_ends_know_the_same_token_or_neither_has_one() {
        let comer = Comer { id: [1; 16], epoch: Epoch::new(7).unwrap() };
        for same in ["", "s3cret"] {
            assert_eq!(meeting(same, same, Answer::Taken).await, (Ok(()), Ok(comer)), "{same:?}");
        }
        for (primary, replica, text) in [
            ("", "s3cret", "a token is wanted"),
            ("s3cret", "", "there is none here"),
            ("s3cret", "s3creT", "the token is wrong"),
        ] {
            let (told, refused) = meeting(primary, replica, Answer::Taken).await;
            assert!(told.as_ref().unwrap_err().contains(text), "{told:?}");
            assert!(refused.as_ref().unwrap_err().contains(text), "{refused:?}");
        }
        for answer in [Answer::Busy, Answer::Stale] {
            let (told, refused) = meeting("s3cret", "s3cret", answer).await;
            assert_eq!(told.unwrap_err(), "the replica refuses: because");
            assert_eq!(refused.unwrap_err(), "because");
        }
    }

    /// A replica that says what it likes, and does not know the token.
    #[tokio::test]
    async fn who_only_claims_to_know_the_token_is_sent_nothing() {
        let (mut ours, mut theirs) = duplex(4096);
        let secret = token("s3cret");
        let introduced = introduce(&mut ours, secret.as_ref(), [1; 16], Epoch::FIRST);
        let (told, ()) = tokio::join!(introduced, async {
            let Greeting::Hello(hello) = receive(&mut theirs).await.unwrap() else { panic!("no hello") };
            let challenge = Challenge { nonce: hello.nonce, has_token: true };
            send(&mut theirs, &Greeting::Challenge(challenge)).await.unwrap();
            // It shows the primary its own proof.
            let Greeting::Proof(proof) = receive(&mut theirs).await.unwrap() else { panic!("no proof") };
            let verdict = Verdict { answer: Answer::Taken, proof, text: String::new() };
            send(&mut theirs, &Greeting::Verdict(verdict)).await.unwrap();
        });
        assert!(told.unwrap_err().contains("does not know the token"));
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused_at_its_first_byte() {
        let (mut ours, mut theirs) = duplex(4096);
        ours.write_all(b"G").await.unwrap();
        let met = meet(&mut theirs, None, |_| (Answer::Taken, String::new())).await;
        assert!(met.unwrap_err().contains("version"));
        let mut frame = rhyolite_format::stream::Frame::Leaving.encode();
        frame.extend_from_slice(&[0; 8]);
        let (mut ours, mut theirs) = duplex(4096);
        ours.write_all(&frame).await.unwrap();
        assert!(meet(&mut theirs, None, |_| (Answer::Taken, String::new())).await.unwrap_err().contains("kind 6"));
        let (ours, mut theirs) = duplex(4096);
        drop(ours);
        assert_eq!(meet(&mut theirs, None, |_| (Answer::Taken, String::new())).await.unwrap_err(), CLOSED);
    }
}
