//! From a URL and the environment to clients of S3, Google Cloud Storage and Azure Blob Storage.
//!
//! Each store gets three clients that differ in patience ([`Handle`]): what may be repeated without harm, what may not, and what
//! is large.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{
    BackoffConfig, Certificate, ClientOptions, HeaderMap, HeaderValue, ObjectStore, RetryConfig,
    StaticCredentialProvider,
};

use super::profile;
use super::provider::Provider;
use super::watch::WatchingConnector;
use super::{Cloud, Flavour, Handles, PART_BYTES, PART_BYTES_MIN, part_time};
use crate::url::StoreUrl;
use crate::{Capabilities, Environment, StoreError};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest silence while an answer is awaited or read.
const READ_STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Connections that nobody uses are closed after this.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The same for conditional writes: before a server closes it (Node's do after 5 s), for a request that meets a closing
/// connection cannot be told from one that was applied.
const POOL_IDLE_TIMEOUT_CONDITIONAL: Duration = Duration::from_secs(4);

const RETRIES_READ: usize = 2;
const RETRIES_PART: usize = 3;

/// Environment variables that the client library understands by itself, by their lower-case names.
const AWS_SERVICES: [&str; 6] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];
const GOOGLE_CREDENTIALS: [&str; 3] =
    ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS"];
const AZURE_CREDENTIALS: [&str; 8] = [
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_AUTHORITY_HOST",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_IDENTITY_ENDPOINT",
    "AZURE_USE_AZURE_CLI",
];

/// What a client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handle {
    /// Reads, lists, deletes: a few retries, no silence for long.
    Read,
    /// Conditional writes: no retry, or a lost answer turns into "exists already". Time is limited by the caller.
    Conditional,
    /// Parts of uploads: a few retries, each within the time for a part.
    Part,
}

/// What the three kinds of store have in common in a URL.
#[derive(Debug)]
struct Common {
    part_bytes: u64,
    skip_verify: bool,
    certificates: Vec<Certificate>,
    allow_http: bool,
    header: Option<(&'static str, &'static str)>,
}

impl Common {
    fn take(url: &mut StoreUrl, environment: &Environment, endpoint: Option<&str>) -> Result<Self, StoreError> {
        if let Some(endpoint) = endpoint
            && !endpoint.starts_with("http://")
            && !endpoint.starts_with("https://")
        {
            return Err(url.invalid(format!("the endpoint {endpoint:?} does not begin with http:// or https://")));
        }
        let part_bytes = url.take_size("part-size")?.unwrap_or(PART_BYTES);
        if !(PART_BYTES_MIN..=1 << 30).contains(&part_bytes) {
            return Err(url.invalid("part-size lies between 5MiB and 1GiB"));
        }
        let ca_file = url.take(&["ca-file"]).or_else(|| environment.get("AWS_CA_BUNDLE"));
        let certificates = match &ca_file {
            None => Vec::new(),
            Some(path) => {
                let pem = std::fs::read(path).map_err(|e| url.invalid(format!("read the CA file {path}: {e}")))?;
                Certificate::from_pem_bundle(&pem).map_err(|e| url.invalid(format!("the CA file {path}: {e}")))?
            }
        };
        let skip_verify = url.take_flag(&["skip-verify", "skipVerify"])?.unwrap_or(false);
        let allow_http = endpoint.is_some_and(|e| e.starts_with("http://"));
        Ok(Self { part_bytes, skip_verify, certificates, allow_http, header: None })
    }

    fn client(&self, handle: Handle) -> ClientOptions {
        let mut options = ClientOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .with_allow_http(self.allow_http)
            .with_allow_invalid_certificates(self.skip_verify);
        if let Some((name, value)) = self.header {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            options = options.with_default_headers(headers);
        }
        for certificate in &self.certificates {
            options = options.with_root_certificate(certificate.clone());
        }
        match handle {
            Handle::Read => options.with_timeout_disabled().with_read_timeout(READ_STALL_TIMEOUT),
            Handle::Conditional => {
                options.with_timeout_disabled().with_pool_idle_timeout(POOL_IDLE_TIMEOUT_CONDITIONAL)
            }
            Handle::Part => options.with_timeout(part_time(self.part_bytes)),
        }
    }

    fn retry(handle: Handle) -> RetryConfig {
        let backoff =
            BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2. };
        let (max_retries, retry_timeout) = match handle {
            Handle::Read => (RETRIES_READ, Duration::from_secs(30)),
            Handle::Conditional => (0, Duration::ZERO),
            Handle::Part => (RETRIES_PART, Duration::from_secs(200)),
        };
        RetryConfig { backoff, max_retries, retry_timeout }
    }
}

/// Builds the three clients.
fn handles(
    url: &StoreUrl,
    build: impl Fn(Handle) -> object_store::Result<Arc<dyn ObjectStore>>,
) -> Result<Handles, StoreError> {
    let build = |handle| build(handle).map_err(|e| url.invalid(e.to_string()));
    Ok(Handles { read: build(Handle::Read)?, conditional: build(Handle::Conditional)?, part: build(Handle::Part)? })
}

/// The bucket's store; the URL's path is not applied yet.
pub(crate) fn cloud(url: &mut StoreUrl, environment: &Environment) -> Result<Cloud, StoreError> {
    if url.host.is_empty() {
        let what = if url.scheme.starts_with('a') { "container" } else { "bucket" };
        return Err(url.invalid(format!("the {what} is missing: {}://{}/prefix", url.scheme, what.to_uppercase())));
    }
    if url.user.is_some() && url.scheme != "abs" && url.scheme != "az" {
        return Err(url.invalid("credentials do not belong into the URL: use the environment"));
    }
    match url.scheme.as_str() {
        "s3" => s3(url, environment),
        "gs" => gcs(url, environment),
        _ => azure(url, environment),
    }
}

fn s3(url: &mut StoreUrl, environment: &Environment) -> Result<Cloud, StoreError> {
    if url.host.ends_with("--x-s3") {
        return Err(url.invalid("directory buckets (S3 Express) list in no order and are not supported"));
    }
    let get = |names: &[&str]| names.iter().find_map(|n| environment.get(n));
    let region = url.take(&["region"]).or_else(|| get(&["AWS_REGION", "AWS_DEFAULT_REGION"]));
    let endpoint = url.take(&["endpoint"]).or_else(|| get(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]));
    let (provider, endpoint) = service(url, endpoint, region.as_deref())?;
    let mut common = Common::take(url, environment, endpoint.as_deref())?;
    common.header = provider.header;
    // Names with dots do not match the certificate *.s3.amazonaws.com; other servers seldom have a name per bucket.
    let by_path = endpoint.is_some() && provider.path_style || url.host.contains('.');
    let by_path = url.take_flag(&["force-path-style", "forcePathStyle"])?.unwrap_or(by_path);
    let bulk_delete = url.take_flag(&["bulk-delete"])?.unwrap_or(provider.bulk_delete);
    let unquoted_etags = url.take_flag(&["unquoted-etags"])?.unwrap_or(provider.unquoted_etags);
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&url.host)
        .with_virtual_hosted_style_request(!by_path)
        .with_disable_bulk_delete(!bulk_delete)
        .with_disable_tagging(true)
        .with_http_connector(WatchingConnector);
    if let Some(key) = url.take(&["sse-kms-key-id"]) {
        builder = builder.with_sse_kms_encryption(key);
    }
    if let Some(endpoint) = &endpoint {
        builder = builder.with_endpoint(if by_path { endpoint.clone() } else { with_host_part(endpoint, &url.host) });
    }
    let (builder, profile_region) = s3_credentials(url, environment, builder)?;
    let region = region.or(profile_region).unwrap_or_else(|| provider.region(endpoint.as_deref()));
    let builder = builder.with_region(region);
    let handles = handles(url, |handle| {
        let client = common.client(handle);
        let builder = builder.clone().with_client_options(client).with_retry(Common::retry(handle));
        Ok(Arc::new(builder.build()?))
    })?;
    Ok(Cloud {
        description: format!("s3://{}", url.host),
        flavour: Flavour::S3 { unquoted_etags },
        handles,
        part_bytes: common.part_bytes,
        capabilities: provider.capabilities,
    })
}

/// Which service it is, and where: by the option `provider`, else by the endpoint.
fn service(
    url: &mut StoreUrl,
    endpoint: Option<String>,
    region: Option<&str>,
) -> Result<(&'static Provider, Option<String>), StoreError> {
    let Some(name) = url.take(&["provider"]) else {
        return Ok((Provider::of_endpoint(endpoint.as_deref()), endpoint));
    };
    let provider = Provider::named(&name).map_err(|reason| url.invalid(reason))?;
    let endpoint = match endpoint {
        Some(endpoint) => Some(endpoint),
        None => provider.own_endpoint(region).map_err(|reason| url.invalid(reason))?,
    };
    Ok((provider, endpoint))
}

/// `https://host` becomes `https://bucket.host`.
fn with_host_part(endpoint: &str, bucket: &str) -> String {
    let (scheme, host) = endpoint.split_once("://").expect("checked when the options were read");
    format!("{scheme}://{bucket}.{host}")
}

/// Keys, in this order: none if asked for, a named profile, the environment, the default profile; otherwise the client library
/// asks web identity, container and machine metadata services. Also gives the profile's region.
fn s3_credentials(
    url: &mut StoreUrl,
    environment: &Environment,
    builder: AmazonS3Builder,
) -> Result<(AmazonS3Builder, Option<String>), StoreError> {
    let named = url.take(&["profile"]);
    if url.take_flag(&["anonymous"])?.unwrap_or(false) {
        return Ok((builder.with_skip_signature(true), None));
    }
    let name = named.clone().or_else(|| environment.get("AWS_PROFILE"));
    let profile = profile::load(environment, name.as_deref().unwrap_or("default"));
    if let (Some(name), None) = (&name, &profile) {
        return Err(url.invalid(format!("there is no AWS profile {name:?}")));
    }
    let profile = profile.unwrap_or_default();
    let region = profile.region.clone();
    for (id, secret) in
        [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("LITESTREAM_ACCESS_KEY_ID", "LITESTREAM_SECRET_ACCESS_KEY")]
    {
        match (environment.get(id), environment.get(secret)) {
            (Some(key), Some(value)) if named.is_none() => {
                let builder = builder.with_access_key_id(key).with_secret_access_key(value);
                let token = environment.get("AWS_SESSION_TOKEN").filter(|_| id.starts_with("AWS"));
                return Ok((token.into_iter().fold(builder, AmazonS3Builder::with_token), region));
            }
            (Some(_), None) => return Err(url.invalid(format!("{id} is set, but {secret} is not"))),
            _ => {}
        }
    }
    if let (Some(id), Some(secret)) = (profile.access_key_id, profile.secret_access_key) {
        let builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        return Ok((profile.session_token.into_iter().fold(builder, AmazonS3Builder::with_token), region));
    }
    if let (Some(foreign), Some(name)) = (profile.foreign, name) {
        let hint =
            format!("put the output of `aws configure export-credentials --profile {name}` into the environment");
        return Err(url.invalid(format!("the AWS profile {name:?} uses {foreign}, which is not supported: {hint}")));
    }
    let set = |builder: AmazonS3Builder, name: &str| match environment.get(name) {
        Some(value) => builder.with_config(config_key::<AmazonS3ConfigKey>(name), value),
        None => builder,
    };
    Ok((AWS_SERVICES.into_iter().fold(builder, set), region))
}

/// The library's name of a setting that is also an environment variable.
fn config_key<K: std::str::FromStr>(variable: &str) -> K {
    let key = variable.to_ascii_lowercase().parse().ok();
    key.expect("the variables listed here are the library's own")
}

fn gcs(url: &mut StoreUrl, environment: &Environment) -> Result<Cloud, StoreError> {
    let endpoint = url.take(&["endpoint"]).or_else(|| environment.get("GOOGLE_BASE_URL"));
    let common = Common::take(url, environment, endpoint.as_deref())?;
    let anonymous = url.take_flag(&["anonymous"])?.unwrap_or(false);
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&url.host)
        .with_skip_signature(anonymous)
        .with_http_connector(WatchingConnector);
    if anonymous {
        // The library looks for credentials when it writes, whatever it was told.
        let nobody = GcpCredential { bearer: String::new() };
        builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(nobody)));
    }
    if let Some(endpoint) = &endpoint {
        builder = builder.with_base_url(endpoint);
    }
    for name in GOOGLE_CREDENTIALS {
        if let Some(value) = environment.get(name) {
            builder = builder.with_config(config_key::<GoogleConfigKey>(name), value);
        }
    }
    let handles = handles(url, |handle| {
        let client = common.client(handle);
        let builder = builder.clone().with_client_options(client).with_retry(Common::retry(handle));
        Ok(Arc::new(builder.build()?))
    })?;
    Ok(Cloud {
        description: format!("gs://{}", url.host),
        flavour: Flavour::Gcs,
        handles,
        part_bytes: common.part_bytes,
        capabilities: Capabilities::given("compares generations"),
    })
}

/// `az://container/prefix` with the account from the environment, or `abs://account@container/prefix`.
fn azure(url: &mut StoreUrl, environment: &Environment) -> Result<Cloud, StoreError> {
    let endpoint = url.take(&["endpoint"]).or_else(|| environment.get("AZURE_STORAGE_ENDPOINT"));
    let common = Common::take(url, environment, endpoint.as_deref())?;
    let account = url
        .user
        .clone()
        .or_else(|| url.take(&["account"]))
        .or_else(|| environment.get("AZURE_STORAGE_ACCOUNT_NAME"))
        .or_else(|| environment.get("AZURE_STORAGE_ACCOUNT"))
        .ok_or_else(|| {
            url.invalid("the account is missing: abs://ACCOUNT@CONTAINER/prefix or AZURE_STORAGE_ACCOUNT")
        })?;
    let mut builder = MicrosoftAzureBuilder::new()
        .with_container_name(&url.host)
        .with_account(&account)
        .with_skip_signature(url.take_flag(&["anonymous"])?.unwrap_or(false))
        .with_disable_tagging(true)
        .with_http_connector(WatchingConnector);
    if let Some(endpoint) = &endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let keys = ["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "LITESTREAM_AZURE_ACCOUNT_KEY"];
    if let Some(key) = keys.iter().find_map(|name| environment.get(name)) {
        builder = builder.with_access_key(key);
    }
    for name in AZURE_CREDENTIALS {
        if let Some(value) = environment.get(name) {
            builder = builder.with_config(config_key::<AzureConfigKey>(name), value);
        }
    }
    let handles = handles(url, |handle| {
        let client = common.client(handle);
        let builder = builder.clone().with_client_options(client).with_retry(Common::retry(handle));
        Ok(Arc::new(builder.build()?))
    })?;
    Ok(Cloud {
        description: format!("az://{}", url.host),
        flavour: Flavour::Azure,
        handles,
        part_bytes: common.part_bytes,
        capabilities: Capabilities::given("honours If-None-Match and If-Match when it writes"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_knows_the_variables() {
        let _ = AWS_SERVICES.map(config_key::<AmazonS3ConfigKey>);
        let _ = GOOGLE_CREDENTIALS.map(config_key::<GoogleConfigKey>);
        let _ = AZURE_CREDENTIALS.map(config_key::<AzureConfigKey>);
    }
}
