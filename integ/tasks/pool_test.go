package tasks

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"berth.dev/berth/cluster/acs/acstest"
	"berth.dev/berth/cluster/ec2"
	"berth.dev/berth/integ/system"
)

// ec2Answer is what the rows read of answers of the EC2 API.
type ec2Answer struct {
	Volumes []struct {
		Status string `xml:"status"`
	} `xml:"volumeSet>item"`
	Snapshots []struct {
		Status  string `xml:"status"`
		Message string `xml:"statusMessage"`
	} `xml:"snapshotSet>item"`
	SnapshotID string `xml:"snapshotId"`
	Code       string `xml:"Errors>Error>Code"`
}

// ec2 calls the EC2 API; an error of the API is in the answer.
func (l *lab) ec2(action, member, value string) (ec2Answer, error) {
	var out ec2Answer
	ctx := context.Background()
	body := url.Values{"Action": {action}, "Version": {ec2.Version}, member: {value}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.Cluster.URL+"/", strings.NewReader(body))
	if err != nil {
		return out, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	credentials, err := l.Cluster.Credentials().Retrieve(ctx)
	if err != nil {
		return out, err
	}
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(ctx, credentials, req, hex.EncodeToString(sum[:]), "ec2", acstest.LabRegion, time.Now()); err != nil {
		return out, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return out, err
	}
	text, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return out, err
	}
	return out, xml.Unmarshal(text, &out)
}

// keptVolume has a snapshot made of a volume that outlived its task, removes the volume,
// and reads in a task what the snapshot has.
func (l *lab) keptVolume(t *testing.T, id string) {
	t.Helper()
	file := func(id string) string { return filepath.Join(l.Dir, "volumes", "pool", id+".img") }
	if _, err := os.Stat(file(id)); err != nil {
		t.Errorf("the volume is not in the pool: %v", err)
	}
	made, err := l.ec2("CreateSnapshot", "VolumeId", id)
	if err != nil || made.SnapshotID == "" {
		t.Fatalf("create snapshot: %+v, %v", made, err)
	}
	snap := made.SnapshotID
	system.Until(t, 2*time.Minute, "the snapshot is complete", func() error {
		a, err := l.ec2("DescribeSnapshots", "SnapshotId.1", snap)
		if err != nil || len(a.Snapshots) != 1 || a.Snapshots[0].Status != "completed" {
			return fmt.Errorf("%+v, %w", a, err)
		}
		return nil
	})
	if a, err := l.ec2("DeleteVolume", "VolumeId", id); err != nil || a.Code != "" {
		t.Fatalf("delete volume: %+v, %v", a, err)
	}
	l.goneFromPool(t, id)
	system.Until(t, time.Minute, "nobody knows the volume", func() error {
		a, err := l.ec2("DescribeVolumes", "VolumeId.1", id)
		if err != nil || a.Code != "InvalidVolume.NotFound" {
			return fmt.Errorf("%+v, %w", a, err)
		}
		return nil
	})

	volume := blockVolume("data", "", true)
	volume.ManagedEBSVolume.SnapshotId, volume.ManagedEBSVolume.SizeInGiB = &snap, nil
	def := atLaunch("data", "grep ' /v ' /proc/mounts | cut -d ' ' -f 3; cat /v/a; echo more >> /v/a")(l)
	def.Family = aws.String("block-volume-of-a-snapshot")
	arn := l.launch(t, l.On(t).Register(def), volume)
	tk := l.On(t).Wait("STOPPED", time.Minute, arn)[0]
	l.prints(t, tk, []string{"ext4", "kept"})
	l.goneFromPool(t, attachmentOf(t, tk, "DELETED", "true")["volumeId"])

	if a, err := l.ec2("DeleteSnapshot", "SnapshotId", snap); err != nil || a.Code != "" {
		t.Fatalf("delete snapshot: %+v, %v", a, err)
	}
	l.goneFromPool(t, snap)
}
