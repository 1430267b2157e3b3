// Package volumes makes the volumes of tasks on the host. A Driver makes one kind; all
// of them pass the suite in volumestest.
//
// What a container is given is always a path that only root can reach, below one of two
// directories of Berth's own:
//
//	Run/                          ends with the system, as its mounts do
//	  tasks/<task>/<volume>       where a volume of a task is mounted
//	  efs.key                     the key of the certificates that EFS is shown
//	  shared/<key>/mount          a mount that several tasks use
//	  shared/<key>/users/<user>   one file for each use of it, made before the mount
//	State/                        outlives the system
//	  tasks/<task>/<volume>       directory of a volume that lives as long as its task
//	  named/<name>/volume.json    a named volume: driver, options, labels
//	  named/<name>/data           its directory
//	  formatting/<volume>         a block volume that was empty and gets its file system
//
// No state is kept in memory and none in a file that a crash could leave half written:
// what is mounted is asked of the kernel, who uses a shared mount is the list of files
// beside it. Mount, Unmount and Check may be repeated, also after a crash inside them.
//
// Paths of the host are walked one component at a time from a descriptor, and what was
// found is mounted by its descriptor: a link that is swapped in meanwhile is never
// followed. All mounts are nosuid, nodev and private.
package volumes
