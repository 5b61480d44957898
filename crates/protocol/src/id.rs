//! Names for things: items, sites, disks, lineages and attempts.
//!
//! Names that come from people become parts of file names, QEMU node names and URLs, so they are checked once, here,
//! when they enter; after that they are trusted. Ids that we make are random (lineage) or counted (attempt).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{Schema, SchemaType, Type};
use utoipa::openapi::{ObjectBuilder, RefOr};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} is not usable: 1 to 64 letters, digits, '.', '_' or '-', not starting with '.' or '-'")]
pub struct BadName {
    what: &'static str,
    name: String,
}

fn check(what: &'static str, name: &str) -> Result<(), BadName> {
    let good = (1..=64).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if good { Ok(()) } else { Err(BadName { what, name: name.chars().take(80).collect() }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The checked text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(name: String) -> Result<Self, BadName> {
                check($what, &name)?;
                Ok(Self(name))
            }
        }
        impl FromStr for $type {
            type Err = BadName;
            fn from_str(name: &str) -> Result<Self, BadName> {
                Self::try_from(name.to_string())
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A replicated VM, by the name its operators call it. Unique in one control server.
    ItemId,
    "item name"
);
name!(
    /// A hypervisor endpoint plus the components near it.
    SiteName,
    "site name"
);
name!(
    /// A disk of a machine, stable for the machine's whole life (`disk0`); never a device node of a guest.
    DiskKey,
    "disk key"
);
name!(
    /// A policy's name.
    PolicyName,
    "policy name"
);

impl PolicyName {
    /// The name of the policy that is there from the start.
    pub fn standard() -> PolicyName {
        PolicyName("standard".into())
    }
}

/// In REST documents each of these is a string.
macro_rules! written_as_text {
    ($($type:ident),*) => {$(
        impl utoipa::PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).into()
            }
        }
        impl utoipa::ToSchema for $type {}
    )*};
}
written_as_text!(ItemId, SiteName, DiskKey, PolicyName, Lineage, Attempt);

/// The identity of a disk content's history: every copy that descends from one protected machine carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lineage(pub uuid::Uuid);

impl Lineage {
    /// A lineage that nobody else has.
    pub fn fresh() -> Lineage {
        Lineage(uuid::Uuid::new_v4())
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

impl FromStr for Lineage {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        uuid::Uuid::parse_str(text)
            .map(Lineage)
            .map_err(|_| BadName { what: "lineage", name: text.chars().take(80).collect() })
    }
}

/// One try at one epoch: the generation (counts failovers: who is authorised to run) and the number of the cut in it.
///
/// Attempts order epochs within a generation and are never reused: a repeated epoch is a new cut with a new number.
/// Number 0 is not an epoch: it marks the state in which a generation's machine was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    /// Rises by one each time another site is authorised to run the item.
    pub generation: u64,
    /// Rises by one with each cut within the generation.
    pub number: u64,
}

impl Attempt {
    /// The state in which `generation` started, before its first epoch.
    pub fn start_of(generation: u64) -> Attempt {
        Attempt { generation, number: 0 }
    }

    /// The attempt after this one in the same generation.
    pub fn next(self) -> Attempt {
        Attempt { generation: self.generation, number: self.number.saturating_add(1) }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.number)
    }
}

impl FromStr for Attempt {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let parsed = text.split_once('.').and_then(|(generation, number)| {
            Some(Attempt { generation: generation.parse().ok()?, number: number.parse().ok()? })
        });
        parsed.ok_or_else(|| BadName { what: "point", name: text.chars().take(80).collect() })
    }
}

impl Serialize for Attempt {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Attempt {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Attempt, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_leave_its_folder_is_refused() {
        for bad in ["", "..", ".hidden", "-rf", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<ItemId>().is_err(), "{bad:?} was taken");
        }
        for good in ["web01", "Web_01.prod-2", "7"] {
            assert_eq!(good.parse::<ItemId>().unwrap().as_str(), good);
        }
        assert!(serde_json::from_str::<ItemId>("\"../etc\"").is_err());
    }

    #[test]
    fn attempts_order_by_generation_then_number_and_survive_text() {
        let early = Attempt { generation: 1, number: 900 };
        let late = Attempt { generation: 2, number: 1 };
        assert!(early < late && early < early.next());
        assert_eq!(late.to_string().parse::<Attempt>().unwrap(), late);
        assert_eq!(serde_json::from_str::<Attempt>("\"2.1\"").unwrap(), late);
        for bad in ["", "2", "2.", ".1", "2.1.3", "-1.2", "99999999999999999999.1"] {
            assert!(bad.parse::<Attempt>().is_err(), "{bad:?} was taken");
        }
    }
}
