package tmds

// Credentials is the answer of the credentials endpoints. It is shown to the task alone
// and printed nowhere.
type Credentials struct {
	RoleARN         string `json:"RoleArn"`
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string `json:"SecretAccessKey"`
	Token           string `json:"Token"`
	Expiration      string `json:"Expiration"` // the cluster's own text
}

// String shows whose they are and nothing else.
func (c Credentials) String() string { return "credentials of " + c.RoleARN + " [redacted]" }

// GoString redacts for %#v.
func (c Credentials) GoString() string { return c.String() }

// CredentialsError is an error of the credentials endpoints.
type CredentialsError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Status  int    `json:"HTTPErrorCode"`
}

// ProtectionRequest is what a task asks of task protection.
type ProtectionRequest struct {
	ProtectionEnabled *bool  `json:"ProtectionEnabled"`
	ExpiresInMinutes  *int32 `json:"ExpiresInMinutes,omitempty"`
}

// ProtectionResponse is the answer of the task protection endpoint; one member is set, or
// Error with RequestID.
type ProtectionResponse struct {
	RequestID  string             `json:"requestID,omitempty"`
	Protection *Protection        `json:"protection,omitempty"`
	Failure    *ProtectionFailure `json:"failure,omitempty"`
	Error      *ProtectionError   `json:"error,omitempty"`
}

// Protection is a task's protection as the cluster has it.
type Protection struct {
	ExpirationDate    *string `json:"ExpirationDate"` // RFC 3339
	ProtectionEnabled bool    `json:"ProtectionEnabled"`
	TaskARN           string  `json:"TaskArn"`
}

// ProtectionFailure is the cluster's failure for the task.
type ProtectionFailure struct {
	ARN    string `json:"Arn"`
	Detail string `json:"Detail"`
	Reason string `json:"Reason"`
}

// ProtectionError is why the endpoint could not do what was asked.
type ProtectionError struct {
	ARN     string `json:"Arn,omitempty"`
	Code    string `json:"Code"`
	Message string `json:"Message"`
}
