//! Services that speak S3, and where each is not Amazon's.
//!
//! A service is known by the host of the endpoint, or named by the option `provider`. What it decides are defaults: an option in the
//! URL wins over each of them. No service gets checksum headers or trailers, which several of them refuse: every request is
//! signed over its whole body, which proves as much.
//!
//! Conditional writes count as given only where the service's own documentation promises both kinds; see `docs/user/stores.md` for
//! the table.

use crate::{Capabilities, Guarantee};

/// One service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Provider {
    /// As the option has it.
    pub(super) name: &'static str,
    /// Ends of its host names, each with the dot before it; or whole names.
    hosts: &'static [&'static str],
    /// Where it is when no endpoint is given; `{region}` stands for the region.
    endpoint: Option<&'static str>,
    region: Region,
    /// With an endpoint, the bucket goes into the path of a request, not into the host name.
    pub(super) path_style: bool,
    /// Whether it deletes many objects by one request.
    pub(super) bulk_delete: bool,
    /// Whether it compares ETags only without their quotes.
    pub(super) unquoted_etags: bool,
    /// A header that every request carries, beside the signed ones.
    pub(super) header: Option<(&'static str, &'static str)>,
    pub(super) capabilities: Capabilities,
}

/// Where the region comes from when nothing names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Region {
    /// Always the same.
    Fixed(&'static str),
    /// The last label before the known end of the host; this when there is none.
    InHost(&'static str),
}

const GIVEN: Capabilities = Capabilities::given("is documented to honour If-None-Match and If-Match when it writes");
const UNPROVEN: Capabilities = Capabilities::unproven(
    "speaks S3, but its provider does not promise conditional writes for every bucket and version",
);

/// What has nothing of its own: the base of the entries below.
const PLAIN: Provider = Provider {
    name: "",
    hosts: &[],
    endpoint: None,
    region: Region::Fixed("us-east-1"),
    path_style: true,
    bulk_delete: true,
    unquoted_etags: false,
    header: None,
    capabilities: UNPROVEN,
};

/// Amazon's own service comes first; the last is for servers that nothing is known of.
pub(super) const PROVIDERS: &[Provider] = &[
    Provider { name: "aws", hosts: &[".amazonaws.com"], capabilities: GIVEN, ..PLAIN },
    Provider {
        name: "r2",
        hosts: &[".r2.cloudflarestorage.com"],
        region: Region::Fixed("auto"),
        capabilities: GIVEN,
        ..PLAIN
    },
    Provider {
        name: "b2",
        hosts: &[".backblazeb2.com"],
        endpoint: Some("https://s3.{region}.backblazeb2.com"),
        region: Region::InHost("us-west-004"),
        ..PLAIN
    },
    // Buckets made since 2025 have no path-style addresses. Without the header a read may come from a copy that lags behind.
    Provider {
        name: "tigris",
        hosts: &["t3.storage.dev", "fly.storage.tigris.dev", ".storage.dev", ".storage.tigris.dev"],
        endpoint: Some("https://t3.storage.dev"),
        region: Region::Fixed("auto"),
        path_style: false,
        header: Some(("x-tigris-consistent", "true")),
        ..PLAIN
    },
    Provider { name: "minio", ..PLAIN },
    Provider {
        name: "digitalocean",
        hosts: &[".digitaloceanspaces.com"],
        endpoint: Some("https://{region}.digitaloceanspaces.com"),
        region: Region::InHost("us-east-1"),
        ..PLAIN
    },
    Provider {
        name: "wasabi",
        hosts: &[".wasabisys.com"],
        endpoint: Some("https://s3.{region}.wasabisys.com"),
        region: Region::InHost("us-east-1"),
        ..PLAIN
    },
    Provider {
        name: "hetzner",
        hosts: &[".your-objectstorage.com"],
        endpoint: Some("https://{region}.your-objectstorage.com"),
        region: Region::InHost("us-east-1"),
        ..PLAIN
    },
    Provider {
        name: "scaleway",
        hosts: &[".scw.cloud"],
        endpoint: Some("https://s3.{region}.scw.cloud"),
        region: Region::InHost("fr-par"),
        capabilities: GIVEN,
        ..PLAIN
    },
    // Its conditions are generations, in headers that S3 does not know: `gs:` uses them.
    Provider {
        name: "gcs",
        hosts: &["storage.googleapis.com"],
        endpoint: Some("https://storage.googleapis.com"),
        region: Region::Fixed("auto"),
        bulk_delete: false,
        capabilities: Capabilities {
            create: Guarantee::Unproven,
            swap: Guarantee::Unproven,
            why: "is Google Cloud Storage under S3's name, whose conditions are its own: use a gs: URL",
        },
        ..PLAIN
    },
    Provider { name: "ceph", unquoted_etags: true, ..PLAIN },
    Provider { name: "other", ..PLAIN },
];

impl Provider {
    /// By the option's value.
    pub(super) fn named(name: &str) -> Result<&'static Self, String> {
        let known = || PROVIDERS.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
        let found = PROVIDERS.iter().find(|p| p.name == name);
        found.ok_or_else(|| format!("unknown provider {name:?}: it is one of {}", known()))
    }

    /// By the endpoint; Amazon's without one, `other` for hosts that are not known.
    pub(super) fn of_endpoint(endpoint: Option<&str>) -> &'static Self {
        let Some(endpoint) = endpoint else { return &PROVIDERS[0] };
        let host = host(endpoint);
        let other = PROVIDERS.last().expect("the table is not empty");
        PROVIDERS.iter().find(|p| p.end_of(host).is_some()).unwrap_or(other)
    }

    /// The service's own endpoint. `Ok(None)` is the client library's default, which is Amazon's.
    pub(super) fn own_endpoint(&self, region: Option<&str>) -> Result<Option<String>, String> {
        match (self.endpoint, region) {
            (Some(template), Some(region)) => Ok(Some(template.replace("{region}", region))),
            (Some(template), None) if !template.contains("{region}") => Ok(Some(template.to_owned())),
            (Some(_), None) => Err(format!("provider {} needs a region or an endpoint", self.name)),
            (None, _) if self.name == "aws" => Ok(None),
            (None, _) => Err(format!("provider {} needs an endpoint", self.name)),
        }
    }

    /// The region when nothing names one.
    pub(super) fn region(&self, endpoint: Option<&str>) -> String {
        let (Region::Fixed(default) | Region::InHost(default)) = self.region;
        let in_host = || {
            let host = host(endpoint?);
            let label = host[..self.end_of(host)?].rsplit('.').next()?;
            Some(label.to_owned()).filter(|label| !label.is_empty() && label != "s3")
        };
        match self.region {
            Region::Fixed(region) => region.to_owned(),
            Region::InHost(_) => in_host().unwrap_or_else(|| default.to_owned()),
        }
    }

    fn end_of(&self, host: &str) -> Option<usize> {
        let end =
            self.hosts.iter().find(|end| if end.starts_with('.') { host.ends_with(*end) } else { host == **end })?;
        Some(host.len() - end.len())
    }
}

/// The host in `https://host:port/path`.
fn host(endpoint: &str) -> &str {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let rest = rest.split(['/', '?']).next().unwrap_or_default();
    rest.split(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_known_by_their_hosts_and_say_their_regions() {
        for (endpoint, name, region) in [
            ("https://s3.eu-west-1.amazonaws.com", "aws", "us-east-1"),
            ("https://abc123.eu.r2.cloudflarestorage.com/", "r2", "auto"),
            ("https://s3.eu-central-003.backblazeb2.com", "b2", "eu-central-003"),
            ("https://t3.storage.dev", "tigris", "auto"),
            ("https://fly.storage.tigris.dev", "tigris", "auto"),
            ("https://fra1.digitaloceanspaces.com", "digitalocean", "fra1"),
            ("https://s3.eu-central-1.wasabisys.com", "wasabi", "eu-central-1"),
            ("https://s3.wasabisys.com", "wasabi", "us-east-1"),
            ("https://fsn1.your-objectstorage.com", "hetzner", "fsn1"),
            ("https://s3.nl-ams.scw.cloud:443/x", "scaleway", "nl-ams"),
            ("https://storage.googleapis.com", "gcs", "auto"),
            ("http://127.0.0.1:9000", "other", "us-east-1"),
            ("https://amazonaws.com.evil.example", "other", "us-east-1"),
        ] {
            let provider = Provider::of_endpoint(Some(endpoint));
            assert_eq!((provider.name, provider.region(Some(endpoint)).as_str()), (name, region), "{endpoint}");
        }
        assert_eq!(Provider::of_endpoint(None).name, "aws");
    }

    #[test]
    fn a_name_finds_the_endpoint_where_there_is_one() {
        let endpoint = |name, region| Provider::named(name).unwrap().own_endpoint(region);
        assert_eq!(endpoint("aws", None), Ok(None));
        assert_eq!(endpoint("tigris", None), Ok(Some("https://t3.storage.dev".to_owned())));
        assert_eq!(endpoint("wasabi", Some("eu-west-1")), Ok(Some("https://s3.eu-west-1.wasabisys.com".to_owned())));
        assert!(endpoint("b2", None).unwrap_err().contains("region"));
        assert!(endpoint("minio", Some("x")).unwrap_err().contains("endpoint"));
        assert!(Provider::named("azure").unwrap_err().contains("hetzner"));
    }

    /// The user's table is this one.
    #[test]
    fn the_table_is_documented() {
        const STORES: &str = include_str!("../../../../docs/user/stores.md");
        for p in PROVIDERS {
            let host =
                p.hosts.iter().map(|h| format!("`{}`", h.trim_start_matches('.'))).collect::<Vec<_>>().join(", ");
            let style = if p.path_style { "path" } else { "host" };
            let region = match p.region {
                Region::Fixed(region) => format!("`{region}`"),
                Region::InHost(_) => "in the host".to_owned(),
            };
            let row = format!("| `{}` | {host} | {region} | {style} | {} |", p.name, p.capabilities.fencing());
            assert!(STORES.contains(&row), "docs/user/stores.md must have the row\n{row}");
        }
    }
}
