//! The words of the product as types. What is printed is parsed back exactly.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::crc::{crc64, join_page, update_by_table};

/// Text that is not the printed form of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// What was expected, for example `"TXID of 16 hex digits"`.
    pub expected: &'static str,
    /// What was found.
    pub found: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, found {:?}", self.expected, self.found)
    }
}

impl std::error::Error for ParseError {}

pub(crate) fn parse_hex64(text: &str, expected: &'static str) -> Result<u64, ParseError> {
    let ok = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let value = ok.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    value.ok_or_else(|| ParseError { expected, found: text.to_owned() })
}

/// Implements text and JSON forms (16 lower-case hex digits) for a 64-bit id that is never zero.
macro_rules! nonzero_id {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(NonZeroU64);

        impl $name {
            /// The first one.
            pub const FIRST: Self = Self(NonZeroU64::MIN);

            /// `None` for 0, and for the largest number: so there is always one after a number that came from outside.
            pub const fn new(value: u64) -> Option<Self> {
                match NonZeroU64::new(value) {
                    Some(v) if value < u64::MAX => Some(Self(v)),
                    _ => None,
                }
            }

            /// The number, never 0.
            pub const fn get(self) -> u64 {
                self.0.get()
            }

            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("64 bits outlast every database"))
            }

            /// The one before this; `None` before the first.
            #[must_use]
            pub fn previous(self) -> Option<Self> {
                Self::new(self.get() - 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.get())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.get())
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            /// Exactly 16 hex digits, not zero.
            fn from_str(text: &str) -> Result<Self, ParseError> {
                let value = parse_hex64(text, $expected)?;
                Self::new(value).ok_or_else(|| ParseError { expected: $expected, found: text.to_owned() })
            }
        }

        text_serde!($name);
    };
}

/// Parses a string without keeping a copy of it: a manifest holds tens of thousands.
pub(crate) fn deserialize_text<'de, D: Deserializer<'de>, T: FromStr<Err = ParseError>>(d: D) -> Result<T, D::Error> {
    struct Visitor<T>(std::marker::PhantomData<T>);

    impl<T: FromStr<Err = ParseError>> serde::de::Visitor<'_> for Visitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    d.deserialize_str(Visitor(std::marker::PhantomData))
}

/// JSON form = text form.
macro_rules! text_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                deserialize_text(d)
            }
        }
    };
}

nonzero_id! {
    /// Number of a commit in its lineage, from 1 (LTX specification, section 11).
    Txid, "TXID of 16 hex digits, not 0"
}
nonzero_id! {
    /// Sequence number of a log segment in the store, from 1.
    Seq, "sequence number of 16 hex digits, not 0"
}
nonzero_id! {
    /// Number of a right to write, from 1. It only grows.
    Epoch, "epoch of 16 hex digits, not 0"
}

/// Number of a page, from 1 (SQLite file format, section 1.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber(NonZeroU32);

impl PageNumber {
    /// The page that holds the database header.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// `None` for 0.
    pub const fn new(value: u32) -> Option<Self> {
        match NonZeroU32::new(value) {
            Some(v) => Some(Self(v)),
            None => None,
        }
    }

    /// The number, never 0.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Position in an array that starts with page 1.
    pub const fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    /// Offset in bytes of this page in the database file.
    pub const fn offset(self, page_size: PageSize) -> u64 {
        (self.0.get() as u64 - 1) * page_size.get() as u64
    }
}

impl fmt::Display for PageNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PageNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageNumber({})", self.0)
    }
}

/// Size of a database in pages. 0 is an empty or deleted database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageCount(pub u32);

impl PageCount {
    /// The number of pages.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Size in bytes of a database file of this many pages.
    pub const fn bytes(self, page_size: PageSize) -> u64 {
        self.0 as u64 * page_size.get() as u64
    }

    /// Whether `pgno` lies within a database of this size.
    pub const fn contains(self, pgno: PageNumber) -> bool {
        pgno.get() <= self.0
    }
}

impl fmt::Display for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Size of a page in bytes: a power of two in 512..=65536.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// The smallest page size.
    pub const MIN: Self = Self(512);
    /// The largest page size.
    pub const MAX: Self = Self(65536);

    /// `None` for anything that SQLite does not allow.
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 65536 { Some(Self(bytes)) } else { None }
    }

    /// The size in bytes.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes, for slices.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The page that contains byte 2^30: SQLite locks its bytes and never stores anything in it (LTX specification,
    /// section 19.2).
    pub const fn lock_page(self) -> PageNumber {
        match PageNumber::new(0x4000_0000 / self.0 + 1) {
            Some(pgno) => pgno,
            None => unreachable!(),
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSize({})", self.0)
    }
}

impl Serialize for PageSize {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u32(self.0)
    }
}

impl<'de> Deserialize<'de> for PageSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let bytes = u32::deserialize(d)?;
        Self::new(bytes).ok_or_else(|| serde::de::Error::custom(format!("page size {bytes} is not allowed")))
    }
}

/// Checksum of a page or of a whole database: a CRC-64 with bit 63 set (LTX specification, sections 3.2 and 3.3).
///
/// The checksum of a database is the XOR of those of its pages, so a transaction changes it by XOR-ing the old checksum
/// of each changed page out and the new one in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum(u64);

impl Checksum {
    /// Set in every checksum, so that 0 can mean "none".
    pub const FLAG: u64 = 1 << 63;
    /// The checksum of a database without pages.
    pub const EMPTY: Self = Self(Self::FLAG);

    /// `None` when the flag bit is missing.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        if raw & Self::FLAG != 0 { Some(Self(raw)) } else { None }
    }

    /// A CRC made into a checksum by setting the flag bit.
    pub const fn from_crc(crc: u64) -> Self {
        Self(crc | Self::FLAG)
    }

    /// Checksum of one page. `data` is as long as a page.
    pub fn of_page(pgno: PageNumber, data: &[u8]) -> Self {
        Self::from_page_crc(pgno, crc64(data), data.len())
    }

    /// Checksum of one page from the CRC of its data alone, so that data which counts in other checksums too is read
    /// once. `page_bytes` is the page size.
    pub fn from_page_crc(pgno: PageNumber, data_crc: u64, page_bytes: usize) -> Self {
        Self::from_crc(join_page(update_by_table(0, &pgno.get().to_be_bytes()), data_crc, page_bytes))
    }

    /// The 64 bits as stored.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// This database checksum with `page` put in, or taken out: the two are the same.
    #[must_use]
    pub const fn toggle(self, page: Self) -> Self {
        Self((self.0 ^ page.0) | Self::FLAG)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checksum({:016x})", self.0)
    }
}

impl FromStr for Checksum {
    type Err = ParseError;

    /// Exactly 16 hex digits with bit 63 set.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        const EXPECTED: &str = "checksum of 16 hex digits with bit 63 set";
        let raw = parse_hex64(text, EXPECTED)?;
        Self::from_raw(raw).ok_or_else(|| ParseError { expected: EXPECTED, found: text.to_owned() })
    }
}

text_serde!(Checksum);

/// A point in a lineage: the last commit and the checksum of the whole database after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pos {
    /// The last commit.
    pub txid: Txid,
    /// The database after it.
    pub checksum: Checksum,
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.txid, self.checksum)
    }
}

impl FromStr for Pos {
    type Err = ParseError;

    /// `txid/checksum`, 33 characters.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError { expected: "position TXID/CHECKSUM", found: text.to_owned() };
        let (txid, checksum) = text.split_once('/').ok_or_else(error)?;
        Ok(Self { txid: txid.parse()?, checksum: checksum.parse()? })
    }
}

/// Milliseconds since the Unix epoch, UTC. How it is shown to people is not this crate's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

/// Implements a random 128-bit id whose text form is 32 lower-case hex digits.
macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            /// Exactly 32 hex digits.
            fn from_str(text: &str) -> Result<Self, ParseError> {
                let ok = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
                let value = ok.then(|| u128::from_str_radix(text, 16).ok()).flatten();
                let value = value.ok_or_else(|| ParseError { expected: $expected, found: text.to_owned() })?;
                Ok(Self(value.to_be_bytes()))
            }
        }

        text_serde!($name);
    };
}

random_id! {
    /// Random id of one history. Two databases, or two histories, never share a prefix in a store.
    Lineage, "lineage of 32 hex digits"
}
random_id! {
    /// Random id of one attempt to write, by which a writer recognises its own object.
    Nonce, "nonce of 32 hex digits"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_checksums_of_the_specification() {
        let page = |pgno, fill, size| Checksum::of_page(PageNumber::new(pgno).unwrap(), &vec![fill; size]).get();
        assert_eq!(page(1, 0, 512), 0xefb1_f44f_ecd9_9000);
        assert_eq!(page(2, 0, 512), 0xef63_e89f_ecd9_9000);
        assert_eq!(page(1, 0, 4096), 0xd932_8f59_2d9e_733d);
        assert_eq!(page(1, 0xff, 4096), 0xbce2_dc0a_bd0e_73ad);
        assert_eq!(page(16384, 0, 65536), 0xf1ef_c090_c159_ac83);
    }

    #[test]
    fn text_forms_parse_back_exactly_and_nothing_else_parses() {
        let txid = Txid::new(0x2a).unwrap();
        assert_eq!(txid.to_string(), "000000000000002a");
        assert_eq!("000000000000002a".parse(), Ok(txid));
        assert_eq!("000000000000002A".parse(), Ok(txid), "upper case is taken on input");
        for bad in [
            "",
            "2a",
            "0000000000000000",
            "ffffffffffffffff",
            "+00000000000002a",
            "0x0000000000002a",
            "000000000000002a ",
        ] {
            assert!(bad.parse::<Txid>().is_err(), "{bad:?}");
        }
        let pos = Pos { txid, checksum: Checksum::EMPTY };
        assert_eq!(pos.to_string().parse(), Ok(pos));
        assert!("7000000000000000".parse::<Checksum>().is_err());
        let lineage = Lineage([7; 16]);
        assert_eq!(lineage.to_string().parse(), Ok(lineage));
    }

    #[test]
    fn lock_pages_of_the_specification() {
        let sizes = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];
        let pages = sizes.map(|s| PageSize::new(s).unwrap().lock_page().get());
        assert_eq!(pages, [2_097_153, 1_048_577, 524_289, 262_145, 131_073, 65_537, 32_769, 16_385]);
        assert!([0, 256, 1000, 131_072].iter().all(|s| PageSize::new(*s).is_none()));
    }

    #[test]
    fn toggling_twice_changes_nothing() {
        let page = Checksum::of_page(PageNumber::FIRST, &[1; 512]);
        assert_eq!(Checksum::EMPTY.toggle(page).toggle(page), Checksum::EMPTY);
        assert_eq!(Checksum::EMPTY.toggle(page), page);
    }
}
