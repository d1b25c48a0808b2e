//! How a primary that dials a replica and that replica make themselves known, before HTTP/2 begins (docs/spec/stream.md).
//!
//! ```text
//! primary                      replica
//!    hello ─────────────────────►         its process, the epoch of its right, a nonce
//!      ◄───────────────── challenge       a nonce
//!    proof ─────────────────────►         that it knows the token
//!      ◄─────────────────── verdict       taken or not, why not, and the same proof
//! ```
//!
//! Each is a frame with the header of the live stream's ([`crate::stream`]), of a kind of its own and of at most [`LEN_MAX`] bytes after it. A proof is made of
//! the token and of both nonces ([`signed`]); it is zero where there is no token.

use crate::error::{DecodeError, ErrorKind};
use crate::layout::{
    push_challenge as challenge, push_hello as hello, push_proof as proof, push_verdict as verdict,
    stream_frame as head,
};
use crate::stream::{HEADER_SIZE, TEXT_SIZE_MAX, VERSION, begin, epoch, finish, payload, refused, text, whole};
use crate::types::Epoch;

/// The most bytes that may follow a header.
pub const LEN_MAX: usize = verdict::SIZE + TEXT_SIZE_MAX;
/// Size of a nonce in bytes.
pub const NONCE_SIZE: usize = 32;
/// Size of a proof in bytes: an HMAC-SHA256.
pub const PROOF_SIZE: usize = 32;

const WHAT: &str = "push frame";
const HELLO: u8 = 32;
const CHALLENGE: u8 = 33;
const PROOF: u8 = 34;
const VERDICT: u8 = 35;

/// That the token is known, or zeros.
pub type Proof = [u8; PROOF_SIZE];

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// The first one, of the primary.
    Hello(Hello),
    /// The replica's answer to it.
    Challenge(Challenge),
    /// The primary's answer to that.
    Proof(Proof),
    /// The last one, of the replica.
    Verdict(Verdict),
}

/// Who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Random, and the same as long as the process lives: by it a process takes the place of its own former connection.
    pub id: [u8; 16],
    /// The right to write that it has.
    pub epoch: Epoch,
    /// Random.
    pub nonce: [u8; NONCE_SIZE],
    /// Whether it has a token, which the replica must know.
    pub has_token: bool,
}

/// What the proof of the primary is to be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Random.
    pub nonce: [u8; NONCE_SIZE],
    /// Whether the replica has a token, which the primary must know.
    pub has_token: bool,
}

/// What the replica says of the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of it.
    pub answer: Answer,
    /// That the replica knows the token; zeros unless the primary is taken.
    pub proof: Proof,
    /// One line for people, at most [`TEXT_SIZE_MAX`] bytes.
    pub text: String,
}

/// What becomes of a primary that dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is followed: HTTP/2 begins.
    Taken,
    /// It does not know the token.
    Unknown,
    /// Another one is connected, whose right is not older.
    Busy,
    /// A newer right than its own is known.
    Stale,
}

impl Answer {
    const ALL: [Self; 4] = [Self::Taken, Self::Unknown, Self::Busy, Self::Stale];

    fn code(self) -> u8 {
        self as u8 + 1
    }
}

/// Whose proof it is: neither can be shown as the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prover {
    /// Whoever dials.
    Primary,
    /// Whoever was dialed.
    Replica,
}

/// The bytes of which a proof is made, with the token as key: who proves, and what both have said before.
pub fn signed(prover: Prover, hello: &Hello, challenge: &Challenge) -> Vec<u8> {
    let mut bytes = match prover {
        Prover::Primary => b"rhyolite push: primary\n".to_vec(),
        Prover::Replica => b"rhyolite push: replica\n".to_vec(),
    };
    bytes.extend_from_slice(&Greeting::Hello(*hello).encode());
    bytes.extend_from_slice(&Greeting::Challenge(*challenge).encode());
    bytes
}

impl Greeting {
    /// How long the whole frame is that begins with `bytes`; `None` while that is not known. Only version and length are checked.
    ///
    /// # Errors
    /// It is none of these frames, or of another version.
    pub fn len(bytes: &[u8]) -> Result<Option<usize>, DecodeError> {
        if bytes.first().is_some_and(|version| *version != VERSION) {
            let error = DecodeError::new(ErrorKind::Version, WHAT, head::VERSION.offset as u64);
            return Err(error.detail(format!("version {}", bytes[0])));
        }
        if bytes.len() < HEADER_SIZE {
            return Ok(None);
        }
        let len = head::LEN.u32(bytes) as usize;
        if len > LEN_MAX {
            let error = DecodeError::new(ErrorKind::Field, WHAT, head::LEN.offset as u64);
            return Err(error.detail(format!("{len} bytes, at most {LEN_MAX}")));
        }
        Ok(Some(HEADER_SIZE + len))
    }

    /// Reads exactly one frame.
    ///
    /// # Errors
    /// It is none, is cut off or changed, or a field makes no sense.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let payload = payload(bytes, Self::len(bytes)?)?;
        match head::KIND.byte(bytes) {
            HELLO => Hello::decode(payload).map(Self::Hello),
            CHALLENGE => Challenge::decode(payload).map(Self::Challenge),
            PROOF => Ok(Self::Proof(proof::PROOF.bytes(exact(payload, proof::SIZE)?))),
            VERDICT => Verdict::decode(payload).map(Self::Verdict),
            kind => {
                let error = DecodeError::new(ErrorKind::Field, WHAT, head::KIND.offset as u64);
                Err(error.detail(format!("kind {kind}")))
            }
        }
    }

    /// The bytes of the frame.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => finish(HELLO, hello.encode()),
            Self::Challenge(challenge) => finish(CHALLENGE, challenge.encode()),
            Self::Proof(proof) => finish(PROOF, begin(proof)),
            Self::Verdict(verdict) => finish(VERDICT, verdict.encode()),
        }
    }
}

impl Hello {
    fn encode(&self) -> Vec<u8> {
        let mut record = [0; hello::SIZE];
        hello::ID.put(&mut record, &self.id);
        hello::EPOCH.put_u64(&mut record, self.epoch.get());
        hello::NONCE.put(&mut record, &self.nonce);
        hello::HAS_TOKEN.put(&mut record, &[u8::from(self.has_token)]);
        begin(&record)
    }

    fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let record = exact(payload, hello::SIZE)?;
        if !hello::RESERVED.is_zero(record) {
            return Err(refused(ErrorKind::Reserved, hello::RESERVED.offset));
        }
        Ok(Self {
            id: hello::ID.id(record),
            epoch: epoch(record, hello::EPOCH)?,
            nonce: hello::NONCE.bytes(record),
            has_token: truth(hello::HAS_TOKEN.byte(record), hello::HAS_TOKEN.offset)?,
        })
    }
}

impl Challenge {
    fn encode(self) -> Vec<u8> {
        let mut record = [0; challenge::SIZE];
        challenge::NONCE.put(&mut record, &self.nonce);
        challenge::HAS_TOKEN.put(&mut record, &[u8::from(self.has_token)]);
        begin(&record)
    }

    fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let record = exact(payload, challenge::SIZE)?;
        if !challenge::RESERVED.is_zero(record) {
            return Err(refused(ErrorKind::Reserved, challenge::RESERVED.offset));
        }
        let has_token = truth(challenge::HAS_TOKEN.byte(record), challenge::HAS_TOKEN.offset)?;
        Ok(Self { nonce: challenge::NONCE.bytes(record), has_token })
    }
}

impl Verdict {
    fn encode(&self) -> Vec<u8> {
        let mut record = [0; verdict::SIZE];
        verdict::VERDICT.put(&mut record, &[self.answer.code()]);
        verdict::PROOF.put(&mut record, &self.proof);
        let mut bytes = begin(&record);
        bytes.extend_from_slice(&self.text.as_bytes()[..self.text.floor_char_boundary(TEXT_SIZE_MAX)]);
        bytes
    }

    fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let record = whole(payload, verdict::SIZE)?;
        if !verdict::RESERVED.is_zero(record) {
            return Err(refused(ErrorKind::Reserved, verdict::RESERVED.offset));
        }
        let code = verdict::VERDICT.byte(record);
        let answer = Answer::ALL.into_iter().find(|answer| answer.code() == code);
        Ok(Self {
            answer: answer.ok_or_else(|| refused(ErrorKind::Field, verdict::VERDICT.offset))?,
            proof: verdict::PROOF.bytes(record),
            text: text(payload, verdict::SIZE, TEXT_SIZE_MAX)?,
        })
    }
}

/// The payload, which is a record and nothing else.
fn exact(payload: &[u8], size: usize) -> Result<&[u8], DecodeError> {
    let record = whole(payload, size)?;
    if payload.len() > size {
        return Err(refused(ErrorKind::Trailing, size));
    }
    Ok(record)
}

fn truth(byte: u8, offset: usize) -> Result<bool, DecodeError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(refused(ErrorKind::Field, offset)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crc::Crc64;

    fn samples() -> Vec<Greeting> {
        let epoch = Epoch::new(9).unwrap();
        let hello = |has_token| Greeting::Hello(Hello { id: [1; 16], epoch, nonce: [2; 32], has_token });
        let verdict = |answer| Greeting::Verdict(Verdict { answer, proof: [5; 32], text: "wärum".to_owned() });
        let mut all =
            vec![hello(true), hello(false), Greeting::Challenge(Challenge { nonce: [3; 32], has_token: true })];
        all.push(Greeting::Proof([4; 32]));
        all.extend(Answer::ALL.map(verdict));
        all
    }

    #[test]
    fn frames_are_read_back() {
        for greeting in samples() {
            let bytes = greeting.encode();
            assert_eq!(Greeting::decode(&bytes), Ok(greeting));
            assert_eq!(Greeting::len(&bytes), Ok(Some(bytes.len())));
            assert_eq!(Greeting::len(&bytes[..HEADER_SIZE - 1]), Ok(None));
        }
    }

    #[test]
    fn nothing_that_is_cut_or_changed_is_taken() {
        for bytes in samples().iter().map(Greeting::encode) {
            for i in 0..bytes.len() {
                assert!(Greeting::decode(&bytes[..i]).is_err(), "cut at {i}");
                for bit in 0..8 {
                    let mut changed = bytes.clone();
                    changed[i] ^= 1 << bit;
                    assert!(Greeting::decode(&changed).is_err(), "bit {bit} of byte {i}");
                }
            }
            assert_eq!(Greeting::decode(&[&bytes[..], &[0]].concat()).unwrap_err().kind, ErrorKind::Trailing);
        }
    }

    /// What only the CRC keeps out when it is made right again.
    #[test]
    fn fields_that_make_no_sense_are_refused() {
        let check = |greeting: &Greeting, at: usize, value: u8, kind| {
            let mut bytes = greeting.encode();
            bytes[HEADER_SIZE + at] = value;
            let mut crc = Crc64::new();
            crc.update(&bytes[..head::CRC.offset]);
            crc.update(&bytes[HEADER_SIZE..]);
            head::CRC.put_u64(&mut bytes, crc.sum());
            assert_eq!(Greeting::decode(&bytes).unwrap_err().kind, kind, "{greeting:?} {at}");
        };
        let all = samples();
        check(&all[0], hello::HAS_TOKEN.offset, 2, ErrorKind::Field);
        check(&all[0], hello::RESERVED.offset, 1, ErrorKind::Reserved);
        check(&all[0], hello::EPOCH.end() - 1, 0, ErrorKind::Field);
        check(&all[2], challenge::HAS_TOKEN.offset, 2, ErrorKind::Field);
        check(&all[4], verdict::VERDICT.offset, 0, ErrorKind::Field);
        check(&all[4], verdict::VERDICT.offset, 5, ErrorKind::Field);
        check(&all[4], verdict::RESERVED.offset, 1, ErrorKind::Reserved);
    }

    #[test]
    fn what_is_no_greeting_is_known_by_its_first_bytes() {
        assert_eq!(Greeting::len(b"PRI * HTTP/2.0").unwrap_err().kind, ErrorKind::Version);
        assert_eq!(Greeting::len(b"\x16\x03\x01").unwrap_err().kind, ErrorKind::Version);
        let mut long = Greeting::Proof([0; 32]).encode();
        head::LEN.put_u32(&mut long, LEN_MAX as u32 + 1);
        assert_eq!(Greeting::len(&long).unwrap_err().kind, ErrorKind::Field);
        let heartbeat = crate::stream::Frame::Leaving.encode();
        assert_eq!(Greeting::decode(&heartbeat).unwrap_err().kind, ErrorKind::Field);
        let text = "ä".repeat(TEXT_SIZE_MAX);
        let cut = Greeting::Verdict(Verdict { answer: Answer::Busy, proof: [0; 32], text }).encode();
        let Greeting::Verdict(verdict) = Greeting::decode(&cut).unwrap() else { panic!("another kind") };
        assert_eq!(verdict.text.len(), TEXT_SIZE_MAX);
    }

    #[test]
    fn a_proof_is_bound_to_who_gives_it_and_to_what_was_said() {
        let hello = Hello { id: [1; 16], epoch: Epoch::FIRST, nonce: [2; 32], has_token: true };
        let challenge = Challenge { nonce: [3; 32], has_token: true };
        let base = signed(Prover::Primary, &hello, &challenge);
        assert_ne!(base, signed(Prover::Replica, &hello, &challenge));
        assert_ne!(base, signed(Prover::Primary, &Hello { nonce: [4; 32], ..hello }, &challenge));
        assert_ne!(base, signed(Prover::Primary, &Hello { epoch: Epoch::new(2).unwrap(), ..hello }, &challenge));
        assert_ne!(base, signed(Prover::Primary, &hello, &Challenge { nonce: [4; 32], ..challenge }));
    }
}
