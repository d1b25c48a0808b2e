//! Names of LTX files in Litestream replicas and LiteFS folders (LTX specification, section 11).

use std::fmt;
use std::str::FromStr;

use crate::{ParseError, Txid};

/// `MIN-MAX.ltx`, both TXIDs as 16 hex digits. Names order as their bytes do. The header of the file has the last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LtxName {
    /// First transaction in the file.
    pub min_txid: Txid,
    /// Last transaction in the file, not before the first.
    pub max_txid: Txid,
}

impl fmt::Display for LtxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.ltx", self.min_txid, self.max_txid)
    }
}

impl FromStr for LtxName {
    type Err = ParseError;

    /// Lower-case digits only: a name in upper case is another name.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error =
            || ParseError { expected: "name MIN-MAX.ltx of 16 lower-case hex digits each", found: text.to_owned() };
        let (min, max) = text.strip_suffix(".ltx").and_then(|stem| stem.split_once('-')).ok_or_else(error)?;
        let name = Self { min_txid: min.parse()?, max_txid: max.parse()? };
        if name.min_txid > name.max_txid || name.to_string() != text { Err(error()) } else { Ok(name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_exactly_and_nothing_else_parses() {
        let text = "0000000000000001-000000000000000a.ltx";
        let name: LtxName = text.parse().unwrap();
        assert_eq!((name.min_txid.get(), name.max_txid.get(), name.to_string()), (1, 10, text.to_owned()));
        for bad in [
            "",
            "0000000000000001-000000000000000A.ltx",
            "0000000000000001-000000000000000a.ltx.tmp",
            "000000000000000a-0000000000000001.ltx",
            "0000000000000000-0000000000000001.ltx",
            "1-a.ltx",
            "0000000000000001.ltx",
        ] {
            assert!(bad.parse::<LtxName>().is_err(), "{bad:?}");
        }
    }
}
