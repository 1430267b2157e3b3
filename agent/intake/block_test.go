package intake

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// accepted collects what was announced.
type accepted struct {
	list []task.Attachment
	fail error
}

func (a *accepted) Accept(_ context.Context, list []task.Attachment) error {
	a.list = append(a.list, list...)
	return a.fail
}

func ebs(change map[string]string) acs.Attachment {
	a := acs.Attachment{AttachmentARN: "arn:aws:ecs:eu-west-1:123456789012:attachment/a1", AttachmentType: "amazonebs"}
	for _, p := range [][2]string{
		{"volumeId", "vol-0123456789abcdef0"}, {"volumeSizeGib", "20"}, {"deviceName", "/dev/sdf"}, {"sourceVolumeHostPath", "x_vol"},
		{"volumeName", "data"}, {"fileSystem", "xfs"},
	} {
		if v, ok := change[p[0]]; ok {
			p[1] = v
		}
		if p[1] != "absent" {
			a.AttachmentProperties = append(a.AttachmentProperties, acs.AttachmentProperty{Name: p[0], Value: p[1]})
		}
	}
	for _, name := range []string{acs.PropertyPool, acs.PropertyDelete} {
		if v, ok := change[name]; ok {
			a.AttachmentProperties = append(a.AttachmentProperties, acs.AttachmentProperty{Name: name, Value: v})
		}
	}
	return a
}

func confirmation(a acs.Attachment) *acs.ConfirmAttachmentMessage {
	return &acs.ConfirmAttachmentMessage{
		MessageID: "m", ClusterARN: "arn:aws:ecs:eu-west-1:123456789012:cluster/c", ContainerInstanceARN: "arn:aws:ecs:eu-west-1:123456789012:container-instance/c/i",
		TaskARN: arn("t1"), Attachment: &a,
	}
}

func TestBlockVolumeIsAnnounced(t *testing.T) {
	w, got := newWorld(t), &accepted{}
	w.seen["m"] = true // durable by Accept, not by a commit
	in := w.intake()
	in.c.Attachments = got
	before := time.Now()
	if err := in.Attach(t.Context(), confirmation(ebs(nil)), w); err != nil {
		t.Fatal(err)
	}
	if len(got.list) != 1 || len(w.sent) != 1 {
		t.Fatalf("accepted %v, sent %v", got.list, w.sent)
	}
	a := got.list[0]
	want := &task.Volume{Name: "data", Type: task.VolumeBlock, Block: &task.BlockVolume{ID: "vol-0123456789abcdef0", Size: 20 << 30, FileSystem: "xfs", Path: "x_vol"}}
	if d := cmp.Diff(want, a.Volume); d != "" || a.TaskARN != arn("t1") || a.Expires.Before(before.Add(5*time.Minute)) {
		t.Errorf("%+v: %s", a, d)
	}
	got.fail = errors.New("the disk is full")
	if err := in.Attach(t.Context(), confirmation(ebs(nil)), w); err == nil || len(w.sent) != 1 {
		t.Error("what was not durable was acknowledged")
	}
}

func TestBlockVolumeThatIsNotTaken(t *testing.T) {
	minute, none := int64(60000), int64(0)
	for want, m := range map[string]*acs.ConfirmAttachmentMessage{
		"property volumeId":         confirmation(ebs(map[string]string{"volumeId": "absent"})),
		"without a name or a value": confirmation(ebs(map[string]string{"deviceName": ""})),
		"volumeSizeGib":             confirmation(ebs(map[string]string{"volumeSizeGib": "much"})),
		"volumeId \"../vol\"":       confirmation(ebs(map[string]string{"volumeId": "../vol"})),
		"volumeName must be":        confirmation(ebs(map[string]string{"volumeName": "a/b"})),
		"sourceVolumeHostPath is":   confirmation(ebs(map[string]string{"sourceVolumeHostPath": "a b"})),
		"fileSystem \"ntfs\"":       confirmation(ebs(map[string]string{"fileSystem": "ntfs"})),
		"attachments of type":       confirmation(acs.Attachment{AttachmentARN: "arn:aws:ecs:r:1:attachment/a", AttachmentType: "other"}),
		"is not an ARN":             confirmation(acs.Attachment{AttachmentType: "amazonebs"}),
		"without messageId":         {WaitTimeoutMs: &minute},
		"waitTimeoutMs of 0": func() *acs.ConfirmAttachmentMessage {
			m := confirmation(ebs(nil))
			m.WaitTimeoutMs = &none
			return m
		}(),
	} {
		w, got := newWorld(t), &accepted{}
		in := w.intake()
		in.c.Attachments = got
		if err := in.Attach(t.Context(), m, w); err == nil || !strings.Contains(err.Error(), want) || len(got.list) > 0 || len(w.sent) > 0 {
			t.Errorf("%s: %v, accepted %d, sent %d", want, err, len(got.list), len(w.sent))
		}
	}
}

func TestBlockVolumeOfATask(t *testing.T) {
	w := &acs.Task{
		ARN: arn("t1"), DesiredStatus: "RUNNING", Family: "f", Version: "1", NetworkMode: "bridge",
		Volumes:     []acs.Volume{{Name: "own"}, {Name: "data"}},
		Attachments: []acs.Attachment{ebs(map[string]string{acs.PropertyPool: "true", acs.PropertyDelete: "true"})},
		Containers:  []acs.Container{{Name: "main", Image: "i", Essential: true, MountPoints: []acs.MountPoint{{SourceVolume: "data", ContainerPath: "/v"}}}},
	}
	got, err := Translate(w, "")
	if err != nil {
		t.Fatal(err)
	}
	want := []task.Volume{{Name: "own", Type: task.VolumeHost}, {Name: "data", Type: task.VolumeBlock, Block: &task.BlockVolume{
		ID: "vol-0123456789abcdef0", Size: 20 << 30, FileSystem: "xfs", Path: "x_vol", Pooled: true, Delete: true,
	}}}
	if d := cmp.Diff(want, got.Volumes); d != "" {
		t.Error(d)
	}
	w.Attachments = slices.Repeat(w.Attachments, 2)
	if _, err := Translate(w, ""); err == nil || !strings.Contains(err.Error(), "two attachments") {
		t.Errorf("two for one volume: %v", err)
	}
	w.Attachments = []acs.Attachment{{AttachmentType: "serviceconnectdetail"}}
	if _, err := Translate(w, ""); err == nil || !strings.Contains(err.Error(), "not supported") {
		t.Errorf("an attachment that is not known: %v", err)
	}
}
