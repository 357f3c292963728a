package signedimages

# A change that leaves all images of a Pod as they are needs no answer: a running Pod can be labelled, and its finalizers
# removed, after a certificate has expired.
unchanged {
  input.review.operation == "DELETE"
}

unchanged {
  input.review.operation == "UPDATE"
  images(input.review.object) == images(input.review.oldObject)
}

images(pod) = list {
  containers := [image | image := pod.spec.containers[_].image]
  init := [image | image := pod.spec.initContainers[_].image]
  ephemeral := [image | image := pod.spec.ephemeralContainers[_].image]
  volumes := [image | image := pod.spec.volumes[_].image.reference]
  list := array.concat(array.concat(containers, init), array.concat(ephemeral, volumes))
}

# Without a digest, the image that runs can be another one than the image that was verified.
pinned(image) {
  regex.match("@sha256:[0-9a-f]{64}$", image)
}

# Ratify compares the names of repositories letter by letter: a registry in another spelling would get the policy of
# all others.
misspelled(image) {
  regex.match("^[^/@]*([A-Z][^/@]*|:0[0-9]*|:443|:80)/|^registry-1[.]docker[.]io/", image)
}

# An image is refused unless Ratify says yes to it. No answer and an answer in another form are no yes.
verified(image) {
  answer := ratify.responses[_]
  answer[0] == image
  answer[1].isSuccess == true
}

ratify = answers {
  answers := external_data({
    "provider": "ratify-provider",
    "keys": [image | image := images(input.review.object)[_]; pinned(image)],
  })
}

violation[{"msg": msg}] {
  not unchanged
  image := images(input.review.object)[_]
  not pinned(image)
  msg := sprintf("image %s does not have a digest", [image])
}

violation[{"msg": msg}] {
  not unchanged
  image := images(input.review.object)[_]
  misspelled(image)
  why := "write the registry in small letters, without the ports 443 and 80 or zeros before a port, and docker.io"
  msg := sprintf("image %s is refused: %s", [image, why])
}

violation[{"msg": msg}] {
  not unchanged
  image := images(input.review.object)[_]
  pinned(image)
  not verified(image)
  msg := sprintf("no signature of a signer trusted for it: %s", [image])
}

# Why Ratify gave no answer.
violation[{"msg": msg}] {
  not unchanged
  ratify.system_error != ""
  msg := sprintf("Ratify failed: %s", [ratify.system_error])
}

violation[{"msg": msg}] {
  not unchanged
  failed := ratify.errors[_]
  msg := sprintf("Ratify failed to verify %s: %s", [failed[0], failed[1]])
}
