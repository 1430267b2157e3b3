package aws

import (
	"encoding/xml"
	"net/http"
	"strconv"
	"strings"

	"berth.dev/berth/cluster/sigv4"
)

// SetObject stores an object and makes its bucket in a region.
func (s *Server) SetObject(region, bucket, key string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buckets[bucket] = region
	s.objects[bucket+"/"+key] = data
}

// serveS3 serves GetObject, HeadObject and GetBucketLocation with the bucket as the
// first part of the path.
func (s *Server) serveS3(w http.ResponseWriter, r *http.Request, body []byte) {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	c := Call{Service: "s3", Operation: "GetObject", Body: []byte(bucket + "/" + key)}
	if key == "" && r.URL.Query().Has("location") {
		c.Operation = "GetBucketLocation"
	}
	data, err := s.s3(r, c, body, bucket, key)
	if err != nil {
		s3Fault(w, r, err)
		return
	}
	w.Header().Set("X-Amz-Request-Id", requestID())
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if c.Operation == "GetBucketLocation" {
		w.Header().Set("Content-Type", "application/xml")
	} else {
		w.Header().Set("Content-Type", "binary/octet-stream")
		w.Header().Set("ETag", `"d41d8cd98f00b204e9800998ecf8427e"`)
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2023 15:04:05 GMT")
	}
	if r.Method == http.MethodGet {
		w.Write(data) //nolint:errcheck // the client is gone then
	}
}

func (s *Server) s3(r *http.Request, c Call, body []byte, bucket, key string) ([]byte, error) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return nil, &Fault{Status: http.StatusMethodNotAllowed, Code: "MethodNotAllowed", Message: "The specified method is not allowed against this resource."}
	}
	// The signature covers the request's own body; what is recorded is what it names.
	signed := c
	signed.Body = body
	if err := s.admit(r, &signed); err != nil {
		return nil, err
	}
	region, _ := sigv4.Scope(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[len(s.calls)-1].Body = c.Body
	home, ok := s.buckets[bucket]
	switch {
	case !ok:
		return nil, &Fault{Status: http.StatusNotFound, Code: "NoSuchBucket", Message: "The specified bucket does not exist"}
	case c.Operation == "GetBucketLocation":
		if home == "us-east-1" {
			home = ""
		}
		return xml.Marshal(struct {
			XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ LocationConstraint"`
			Region  string   `xml:",chardata"`
		}{Region: home})
	case home != region:
		return nil, &Fault{Status: http.StatusMovedPermanently, Code: "PermanentRedirect", Message: "The bucket you are attempting to access must be addressed using the specified endpoint. Please send all future requests to this endpoint."}
	}
	data, ok := s.objects[bucket+"/"+key]
	if !ok {
		return nil, &Fault{Status: http.StatusNotFound, Code: "NoSuchKey", Message: "The specified key does not exist."}
	}
	return data, nil
}

func s3Fault(w http.ResponseWriter, r *http.Request, err error) {
	f := fault(err)
	switch f.Code { // the names that this service has for them
	case "AccessDeniedException":
		f.Status, f.Code = http.StatusForbidden, "AccessDenied"
	case "UnrecognizedClientException":
		f.Status, f.Code, f.Message = http.StatusForbidden, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."
	case "InvalidSignatureException":
		f.Status, f.Code = http.StatusForbidden, "SignatureDoesNotMatch"
	case "MissingAuthenticationTokenException":
		f.Status, f.Code, f.Message = http.StatusForbidden, "AccessDenied", "Access Denied"
	}
	data, err := xml.Marshal(struct {
		XMLName   xml.Name `xml:"Error"`
		Code      string
		Message   string
		RequestId string //nolint:staticcheck // the name on the wire
	}{Code: f.Code, Message: f.Message, RequestId: requestID()})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(f.Status)
	if r.Method != http.MethodHead {
		w.Write(data) //nolint:errcheck // the client is gone then
	}
}
